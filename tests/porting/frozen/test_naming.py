"""Weights of a frozen graph without names are proposed for a model by the layers that read them."""

from __future__ import annotations

import frozen_graphs
import numpy as np
import tensorflow as tf

from engine.porting.frozen.find import FrozenWeight, find_weights
from engine.porting.frozen.naming import name_weights
from engine.porting.proposals.propose import SourceEntry, propose
from engine.selection.variables import name_variables


def test_a_layer_s_operations_name_its_weights() -> None:
    made = frozen_graphs.convolutional(fused=True)
    definition, renamed = frozen_graphs.anonymise(made.definition)
    found = find_weights(definition, where="model.pb")
    back = {new: old for old, new in renamed.items()}
    named = {back[name]: text for name, text in name_weights(found.weights).items()}
    assert named == {
        **{f"conv{n}/{name}": f"conv{n}/{name}" for n in (0, 1) for name in ("kernel", "gamma", "beta", "moving_mean", "moving_variance")},
        **{f"conv{n}/alphas": f"conv{n}/alpha" for n in (0, 1)},
        "head/weights": "MatMul/kernel",
        "head/biases": "add/bias",
    }  # fmt: skip
    named = name_weights(find_weights(made.definition, where="model.pb").weights)
    assert named == {name: name for name in made.values}  # names that speak stay


def test_names_stay_unique() -> None:
    def weight(name: str, role: str, reader: str) -> FrozenWeight:
        return FrozenWeight(name, "", (2,), np.dtype(np.float32), role=role, reader=reader)

    named = name_weights([
        weight("Const", "kernel", "net/sep/separable_conv2d/depthwise"),
        weight("Const_1", "kernel", "net/sep/separable_conv2d"),
        weight("Const_2", "bias", "net/a/BiasAdd"),
        weight("Const_3", "bias", "net/a/add"),
        weight("Const_4", "kernel", "net/b/BatchNorm/batchnorm/add_1/conv/Conv2D"),
        weight("net/c/Conv2D_bn_offset", "bias", "net/d/Relu/BiasAdd"),
        weight("Const_5", "", ""),
    ])  # fmt: skip
    assert list(named.values()) == [
        "net/sep/depthwise_kernel", "net/sep/pointwise_kernel", "net/a/BiasAdd/bias", "net/a/add/bias", "net/b/kernel",
        "net/c/bias", "Const_5",
    ]  # fmt: skip


def test_rules_are_proposed_for_a_graph_whose_constants_have_no_names() -> None:
    made = frozen_graphs.convolutional(fused=True)
    definition, renamed = frozen_graphs.anonymise(made.definition)
    weights = find_weights(definition, where="model.pb").weights
    called = name_weights(weights)
    model = {
        name.replace("alphas", "alpha").replace("conv", "block_"): tf.Variable(v) for name, v in made.values.items()
    }
    proposal = propose(
        [SourceEntry(called[each.name], each.shape, each.dtype) for each in weights], name_variables(model), layout="tf"
    )
    meant = {called[new]: old for old, new in renamed.items() if new in called}
    lines = {line.target: meant[line.source[0]] for line in proposal.lines if line.confidence >= 0.8}
    right = {name.replace("alphas", "alpha").replace("conv", "block_"): name for name in made.values}
    assert right.items() - lines.items() <= {
        ("head/biases", "head/biases")
    }  # an addition without a scope says too little
    assert lines.items() <= right.items()
