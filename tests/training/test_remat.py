"""Rematerialisation: the same gradients, less kept, and nothing for what does not train."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.memory import buffers
from engine.models import build_model
from engine.training import losses, optimizers, remat
from engine.training.microbatch import MicroBatch
from engine.training.remat import RematError

MODES = remat.MODES


def vit(options: str = "depth=2", dtype: Any = tf.float32) -> Any:
    return build_model(f"vit:mini,{options}", image_shape=(8, 8, 1), outputs=4, dtype=dtype).network


def batch(size: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"image": rng.standard_normal((size, 8, 8, 1)), "label": rng.integers(0, 4, size)}


def traced(model: Any, text: str, mode: str) -> MicroBatch:
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD(), micro_batch_size=2, remat=mode)
    return step.micro_batch(select(model, text), batch())


@functools.cache
def trace_of(depth: int, text: str, mode: str) -> MicroBatch:
    """A ViT of so many blocks, traced once for all tests."""
    return traced(vit(f"depth={depth}"), text, mode)


def gradients(mode: str, text: str, *, options: str, dtype: Any, micro_batch_size: int | None) -> np.ndarray:
    """The first step's, concatenated: the momentum after one step."""
    model = vit(options, dtype)
    selection = select(model, text)
    step = TrainStep(
        losses.supervised_loss(model), optimizers.Momentum(), micro_batch_size=micro_batch_size, remat=mode
    )
    step(selection, batch(), learning_rate=0.1)
    return np.concatenate([step.slots.values[entry.path]["momentum"].numpy().ravel() for entry in selection.trained])


RANDOM = "depth=2,dropout=0.2,drop_path=0.3"
CASES = [
    pytest.param("@all", tf.float64, None, marks=pytest.mark.slow),
    pytest.param("@all", tf.float32, 2, marks=pytest.mark.slow),
    # a frozen block in the middle; one at the bottom
    pytest.param("blocks/0/norm2/.* @head", tf.float64, 2),
    pytest.param("blocks/1/mlp/.*", tf.float32, None, marks=pytest.mark.slow),
]


ENDS = ["none", pytest.param("elementwise", marks=pytest.mark.slow), "blocks"]


@pytest.mark.parametrize("mode", ENDS[1:])
@pytest.mark.parametrize(("text", "dtype", "micro_batch_size"), CASES)
@pytest.mark.usefixtures("deterministic_ops")
def test_recomputed_gradients_are_those_of_kept_tensors_with_dropout_too(
    text: str, dtype: Any, micro_batch_size: int | None, mode: str
) -> None:
    plain, found = (
        gradients(each, text, options=RANDOM, dtype=dtype, micro_batch_size=micro_batch_size) for each in ("none", mode)
    )
    bound = 1e-12 if dtype == tf.float64 else 5e-6  # other orders of summation, nothing else
    assert np.linalg.norm(found - plain) <= bound * np.linalg.norm(plain)


def kept(micro: MicroBatch) -> int:
    return buffers.count_saved_bytes(micro.backward, 16)


def peak(micro: MicroBatch, examples: int = 256) -> int:
    inputs = list(micro.inputs.values())
    return buffers.Buffers(micro.graph, inputs, micro.graph.outputs, kept=False).find_peak(examples)


def test_each_mode_keeps_less_than_the_one_before() -> None:
    found = [trace_of(3, "@all", mode) for mode in MODES]
    for measure in (kept, peak):
        none, elementwise, blocks = map(measure, found)
        assert none > elementwise > blocks, measure


def test_blocks_keep_their_inputs_alone() -> None:
    more = kept(trace_of(3, "@all", "blocks")) - kept(trace_of(2, "@all", "blocks"))
    inputs = 16 * 5 * 96 * 4  # 5 tokens of 96 float32 numbers
    inside = kept(trace_of(3, "@all", "none")) - kept(trace_of(2, "@all", "none"))
    # the recomputed x of a block stands in the graph as a tensor of its own; what is inside is not kept
    assert more <= 2 * inputs < inside / 5


def test_inside_a_block_that_is_recomputed_element_wise_work_is_recomputed_again() -> None:
    one = {mode: trace_of(1, "@all", mode) for mode in MODES}
    # of the only block, all is alive while its gradient is taken: with elementwise marks no more than with these alone
    assert peak(one["blocks"]) <= peak(one["elementwise"]) < peak(one["none"])


HEAVY = {"MatMul", "BatchMatMulV2", "Softmax", "Erf", "Rsqrt", "Exp"}


def count(micro: MicroBatch, kind: str) -> int:
    return [op.type for op in micro.backward].count(kind)


@pytest.mark.parametrize("mode", ENDS)
def test_frozen_blocks_below_the_lowest_trained_variable_cost_nothing_in_the_backward_pass(mode: str) -> None:
    below, none_below = trace_of(2, "@blocks[1:] @head", mode), trace_of(1, "@blocks @head", mode)
    assert kept(below) == kept(none_below)
    for kind in HEAVY:
        assert count(below, kind) == count(none_below, kind), kind
    head = trace_of(1, "@head", mode)
    assert HEAVY & {op.type for op in head.backward} == {"MatMul"}
    assert count(head, "MatMul") == 1


@pytest.mark.parametrize("mode", ENDS)
def test_no_gradient_of_a_variable_outside_the_selection_is_computed(mode: str) -> None:
    everything, one = trace_of(1, "@all", mode), trace_of(1, "blocks/0/attention/query/kernel", mode)
    # the gradient of a bias is one such op, and every bias is outside the selection; what nothing needs is pruned
    assert count(everything, "BiasAddGrad") == 8  # patch, query, key, value, out, up, down, head
    assert count(one, "BiasAddGrad") == 0
    assert len(one.function.structured_outputs["gradients"]) == 1


@pytest.mark.parametrize("mode", ["elementwise", "blocks"])
def test_a_model_without_marks_is_refused(mode: str) -> None:
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=4).network
    with pytest.raises(RematError, match=f"remat={mode}: the model does not mark anything to recompute"):
        traced(model, "@head", mode)


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    with pytest.raises(RematError, match="remat='block': expected one of none, elementwise, blocks; nearest: blocks"):
        TrainStep(losses.supervised_loss(vit()), optimizers.SGD(), remat="block")


def test_outside_a_training_step_marks_do_nothing() -> None:
    model = vit("depth=1")
    evaluate = tf.function(model, autograph=False).get_concrete_function(tf.TensorSpec([None, 8, 8, 1], tf.float32))
    before = [op.type for op in evaluate.graph.get_operations()]
    traced(model, "@all", "blocks")
    again = tf.function(model, autograph=False).get_concrete_function(tf.TensorSpec([None, 8, 8, 1], tf.float32))
    assert [op.type for op in again.graph.get_operations()] == before
    # 3 norms, up's GELU: their own custom gradients; a mark would add one for itself
    with remat.scope("blocks"):
        marked = tf.function(model, autograph=False).get_concrete_function(tf.TensorSpec([None, 8, 8, 1], tf.float32))
    assert len(marked.graph.get_operations()) > len(before)


def test_a_trace_that_fails_leaves_no_mode_behind() -> None:
    model = vit("depth=1")
    with pytest.raises(ZeroDivisionError), remat.scope("blocks"):
        raise ZeroDivisionError
    assert remat.block(lambda x: x, model) is model  # outside a scope: the function itself, no tensor


def test_your_own_model_can_mark_what_is_recomputed() -> None:
    kernel = tf.Variable(np.linspace(-1, 1, 9).reshape(3, 3))

    def model(image: Any) -> Any:
        return remat.elementwise(lambda x: tf.tanh(x @ kernel) @ kernel, image)

    found = []
    for mode in ("none", "elementwise"):
        kernel.assign(np.linspace(-1, 1, 9).reshape(3, 3))
        step = TrainStep(losses.supervised_loss(model, "mse"), optimizers.SGD(), remat=mode)
        given = {"image": np.arange(6.0).reshape(2, 3), "label": np.ones((2, 3))}
        step(select({"kernel": kernel}, ".*"), given, learning_rate=0.1)
        found.append(kernel.numpy())
    np.testing.assert_allclose(*found, rtol=1e-12)
