"""Cells of TensorFlow 1, run in a Session, against the layers of Keras that --auto makes of them; and the way back."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.families import group_families
from compat_v1.porting.port import Weights, plan_port
from engine import porting
from engine.porting.proposals.propose import list_entries, propose
from engine.porting.reverse import Reverse
from engine.porting.rules.language import parse_rules
from engine.selection.variables import name_variables

pytestmark = pytest.mark.filterwarnings("ignore:.*rnn_cell.* is deprecated")
v1 = tf.compat.v1
K = keras.layers


class Made(NamedTuple):
    """The sequences, the outputs of each cell in its Session, and a file of all variables and of Adam's slots."""

    x: np.ndarray
    outputs: list[np.ndarray]
    file: pathlib.Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")
    from tf_keras.src.layers.rnn import legacy_cells as cells

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 7)).astype(np.float32)
    with tf.Graph().as_default():
        fed = v1.placeholder(tf.float32, x.shape)

        def run(cell: Any, scope: str) -> Any:
            return v1.nn.dynamic_rnn(cell, fed, dtype=tf.float32, scope=scope)[0]

        both, _ = v1.nn.bidirectional_dynamic_rnn(cells.LSTMCell(6), cells.LSTMCell(6), fed, dtype=tf.float32)
        outputs = [
            run(cells.BasicLSTMCell(4), "basic"),
            run(cells.MultiRNNCell([cells.LSTMCell(5), cells.LSTMCell(5)]), "stack"),
            run(cells.GRUCell(4), "gated"),
            run(cells.BasicRNNCell(3), "simple"),
            tf.concat(both, -1),
        ]
        loss = tf.add_n([tf.reduce_sum(tf.square(output)) for output in outputs])
        v1.train.AdamOptimizer(0.01).minimize(loss)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for variable in v1.global_variables():
                if variable.shape.rank and not variable.op.name.endswith(("_power", "_power_1")):
                    variable.load(rng.normal(0, 0.7, variable.shape).astype(np.float32), session)
            values = session.run({variable.name: variable for variable in v1.global_variables()})
            found = session.run(outputs, {fed: x})
    file = tmp_path_factory.mktemp("cells") / "cells.npz"
    np.savez(file, **values)
    return Made(x, found, file)


def build(*, reset_after: bool = False) -> keras.Model:
    images = keras.Input((5, 7))
    stacked = K.LSTM(5, return_sequences=True, name="upper")(K.LSTM(5, return_sequences=True, name="lower")(images))
    return keras.Model(
        images,
        [
            K.LSTM(4, return_sequences=True, name="basic_layer")(images),
            stacked,
            K.GRU(4, return_sequences=True, reset_after=reset_after, name="gated_layer")(images),
            K.SimpleRNN(3, return_sequences=True, name="simple_layer")(images),
            K.Bidirectional(K.LSTM(6, return_sequences=True), name="both")(images),
        ],
    )


def test_a_port_by_its_own_proposal_computes_what_the_cells_of_tensorflow_1_compute(made: Made) -> None:
    model = build()
    with porting.open_tensors(made.file) as source:
        weights = Weights(source)
        proposal = propose(list_entries(weights), name_variables(model), hidden=weights.hidden)
        assert proposal.sure() == 1, proposal.table()
        rules = parse_rules(proposal.rules_text())
        porting.load(model, weights, rules)
    for ours, theirs in zip(model(made.x), made.outputs, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


def test_slots_take_the_order_of_the_gates_but_no_forget_bias(made: Made) -> None:
    model = build()
    with porting.open_tensors(made.file) as source:
        weights = Weights(source)
        rules = parse_rules(propose(list_entries(weights), name_variables(model)).rules_text())
        planned = plan_port(weights, name_variables(model), rules, slots="Adam", adam_step=1)
        assert planned.slots is not None
        arrays = dict(planned.slots.arrays(source, 1))
        old = source.read("basic/basic_lstm_cell/bias/Adam_1:0").reshape(4, 4)
    np.testing.assert_array_equal(arrays["optimizer/basic_layer/lstm_cell/bias/v"], old[[0, 2, 1, 3]].reshape(-1))
    assert arrays["optimizer/gated_layer/gru_cell/kernel/m"].shape == (7, 12)


def test_the_way_back_changes_nothing_that_did_not_change_and_rows_where_something_did(made: Made) -> None:
    model = build()
    with porting.open_tensors(made.file) as source:
        rules = parse_rules(propose(list_entries(Weights(source)), name_variables(model)).rules_text())
        weights = Weights(source)
        porting.load(model, weights, rules)
        back = Reverse(model, rules, weights)  # type: ignore[arg-type]
        for name in back.names():
            assert back.read(name).tobytes() == source.read(name).tobytes()
        assert back.changed == []
        variables = {entry.path: entry.variable for entry in name_variables(model)}
        recurrent = variables["gated_layer/gru_cell/recurrent_kernel"]
        recurrent.assign(recurrent + 1)
        bias = variables["basic_layer/lstm_cell/bias"]
        bias.assign(bias * 2)
        moved = {name: back.read(name) - source.read(name) for name in back.names()}
    assert sorted(back.changed) == [
        "basic/basic_lstm_cell/bias:0", "gated/gru_cell/candidate/kernel:0", "gated/gru_cell/gates/kernel:0",
    ]  # fmt: skip
    np.testing.assert_array_equal(moved["gated/gru_cell/gates/kernel:0"][:7], 0)
    np.testing.assert_allclose(moved["gated/gru_cell/gates/kernel:0"][7:], 1, rtol=1e-6)
    with porting.open_tensors(made.file) as source:
        old = source.read("basic/basic_lstm_cell/bias:0").reshape(4, 4)  # i, j, f, o; 2 (f + 1) - 1 is 2 f + 1
    np.testing.assert_allclose(
        moved["basic/basic_lstm_cell/bias:0"].reshape(4, 4), old + np.array([[0], [0], [1], [0]]), atol=1e-6
    )


def test_a_gru_that_resets_after_the_product_is_refused_with_the_reason(made: Made) -> None:
    with porting.open_tensors(made.file) as source:
        proposal = propose(list_entries(Weights(source)), name_variables(build(reset_after=True)))
    missing = {variable.path: variable.reason for variable in proposal.missing}
    assert set(missing) == {f"gated_layer/gru_cell/{name}" for name in ("kernel", "recurrent_kernel", "bias")}
    assert all("a GRUCell of TensorFlow 1 is a GRU with reset_after=False" in reason for reason in missing.values())


def test_slots_with_the_output_number_of_a_tensor_are_grouped(made: Made) -> None:
    with porting.open_tensors(made.file) as source:
        found = group_families(source)
    family = found.get("basic/basic_lstm_cell/kernel:0")
    assert family is not None
    assert family.slots == {
        "Adam": {"m": "basic/basic_lstm_cell/kernel/Adam:0", "v": "basic/basic_lstm_cell/kernel/Adam_1:0"}
    }
    assert set(found.state) == {"beta1_power", "beta2_power"}
    assert len(found.variables) == 16
