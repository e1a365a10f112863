"""What LSTM cells add to their forget gates is read from the graph, or said to be assumed; other cells are refused."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from compat_v1.porting.port import Weights, plan_port
from engine import porting
from engine.audit.forget_bias import check_forget_biases, find_forget_biases, read_forget_biases
from engine.porting import PortError
from engine.porting.ledger import Loaded
from engine.porting.proposals.propose import list_entries, propose
from engine.porting.rules.language import parse_rules
from engine.selection.variables import name_variables

pytestmark = pytest.mark.filterwarnings("ignore:.*rnn_cell.* is deprecated")
v1 = tf.compat.v1


@pytest.fixture(scope="module")
def cells() -> Any:
    pytest.importorskip("tf_keras", reason="tf-keras is not installed (make install does it)")
    from tf_keras.src.layers.rnn import legacy_cells

    return legacy_cells


@pytest.fixture
def flow(request: pytest.FixtureRequest) -> Iterator[str]:
    """Loops as functions ("v2"), or as the operations of old graphs ("v1")."""
    before = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if request.param == "v2" else v1.disable_control_flow_v2)()
    yield request.param
    (v1.enable_control_flow_v2 if before else v1.disable_control_flow_v2)()


def save_cell(folder: pathlib.Path, make: Callable[[], Any], *, static: bool = False) -> pathlib.Path:
    """Saves a cell of 4 units on 3 inputs, with its graph, and returns the prefix."""
    with tf.Graph().as_default(), v1.Session() as session:
        fed = v1.placeholder(tf.float32, [2, 5, 3])
        if static:
            v1.nn.static_rnn(make(), tf.unstack(fed, axis=1), dtype=tf.float32)
        else:
            v1.nn.dynamic_rnn(make(), fed, dtype=tf.float32)
        session.run(v1.global_variables_initializer())
        return pathlib.Path(v1.train.Saver().save(session, str(folder / "m")))


def lstm(**options: Any) -> keras.Model:
    sequence = keras.Input((5, 3))
    return keras.Model(sequence, keras.layers.LSTM(4, **options)(sequence))


WHOLE = [
    (flow, kind, static, bias)
    for flow in ("v1", "v2")
    for kind, static in (("BasicLSTMCell", False), ("LSTMCell", False), ("BasicLSTMCell", True))
    for bias in (0.3, 0.0)
]
QUICK = [("v1", "BasicLSTMCell", False, 0.3), ("v2", "LSTMCell", False, 0.3), ("v2", "BasicLSTMCell", True, 0.0)]


@pytest.mark.parametrize(
    ("flow", "kind", "static", "bias"),
    [pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow) for each in WHOLE],
    indirect=["flow"],
)
def test_the_forget_bias_is_read_from_the_graph_beside_the_checkpoint(
    tmp_path: pathlib.Path, cells: Any, flow: str, kind: str, static: bool, bias: float
) -> None:
    prefix = save_cell(tmp_path, lambda: getattr(cells, kind)(4, forget_bias=bias), static=static)
    known = find_forget_biases(prefix)
    assert len(known) == 2
    assert set(known.values()) == {bias}
    model = lstm()
    with porting.open_tensors(prefix) as source:
        proposal = propose(list_entries(source), name_variables(model), layout="tf", forget_biases=known)
        assert proposal.sure() == 1
        text = proposal.rules_text()
        planned = plan_port(Weights(source), name_variables(model), parse_rules(text))
    assert f"the graph adds a forget_bias of {bias}" in text
    assert ("add(" in text) == bool(bias)
    assert planned.fact == "the forget bias of lstm/lstm_cell/bias is that of the graph"


def test_rules_that_add_another_forget_bias_than_the_graph_are_refused(tmp_path: pathlib.Path, cells: Any) -> None:
    prefix = save_cell(tmp_path, lambda: cells.BasicLSTMCell(4, forget_bias=0.5))
    model = lstm()
    with porting.open_tensors(prefix) as source:
        text = propose(list_entries(source), name_variables(model), layout="tf").rules_text()
        assert "assumed to be 1.0 because no graph says it" in text
        with pytest.raises(PortError, match=r"the rule adds 1.0, the graph 0.5; the line should end in `\| lstm_gates"):
            plan_port(Weights(source), name_variables(model), parse_rules(text))
        pathlib.Path(f"{prefix}.meta").unlink()
        planned = plan_port(Weights(source), name_variables(model), parse_rules(text))
    assert (
        "the forget bias of lstm/lstm_cell/bias (1.0) is assumed: no graph that would say it was read" in planned.fact
    )


def test_what_is_added_to_another_gate_is_not_the_forget_bias(tmp_path: pathlib.Path, cells: Any) -> None:
    prefix = save_cell(tmp_path, lambda: cells.BasicLSTMCell(4))
    name = "rnn/basic_lstm_cell/bias"
    for transforms, right in {
        ("lstm_gates", "add(1.0, 0, 4, 1)"): True,
        ("add(1.0, 0, 4, 2)", "lstm_gates"): True,
        ("lstm_gates", "add(1.0, 0, 4, 2)"): False,
        ("lstm_gates",): False,
    }.items():
        made = [Loaded((name,), "lstm/bias", transforms, (16,), "float32")]
        if right:
            assert check_forget_biases(made, prefix) == "the forget bias of lstm/bias is that of the graph"
        else:
            with pytest.raises(PortError, match="the line should end in"):
                check_forget_biases(made, prefix)


def test_finetune_refuses_rules_with_another_forget_bias_than_the_graph_beside_the_weights(
    tmp_path: pathlib.Path, cells: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = save_cell(tmp_path, lambda: cells.BasicLSTMCell(4, forget_bias=0.5))
    (tmp_path / "lstm_model.py").write_text(
        "import keras\n\ndef build(image_shape=(5, 3, 1), outputs=2):\n    images = keras.Input(image_shape)\n"
        "    x = keras.layers.LSTM(4, name='lstm')(keras.layers.Reshape((5, 3))(images))\n"
        "    return keras.Model(images, keras.layers.Dense(outputs, name='head')(x))\n"
    )
    cell = "lstm/lstm_cell/"
    (tmp_path / "l.rules").write_text(
        f"{cell}kernel <- rnn/basic_lstm_cell/kernel | slice(0, 0, 3) | lstm_gates\n"
        f"{cell}recurrent_kernel <- rnn/basic_lstm_cell/kernel | slice(0, 3, 7) | lstm_gates\n"
        f"{cell}bias <- rnn/basic_lstm_cell/bias | lstm_gates | add(1.0, 0, 4, 1)\n"
    )
    images, labels = np.zeros((8, 5, 3, 1), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        "--model=py:lstm_model:build", f"--weights={prefix}", f"--rules={tmp_path}/l.rules", f"--data=npz:{tmp_path}/d.npz",
        "--batch_size=4", "--train=@head", "--dry_run",
    ]  # fmt: skip
    code, _, error = call(*words)
    assert code == 2
    assert "the rule adds 1.0, the graph 0.5; the line should end in `| lstm_gates | add(0.5, 0, 4, 1)`" in error
    pathlib.Path(f"{prefix}.meta").unlink()
    code, printed, error = call(*words)
    assert code == 0, error
    assert "the forget bias of lstm/lstm_cell/bias (1.0) is assumed" in printed


def test_a_fused_operation_and_a_frozen_graph_say_their_forget_bias() -> None:
    with tf.Graph().as_default() as graph:
        w, b = (v1.get_variable(name, shape, use_resource=True) for name, shape in (("cell/kernel", [7, 16]), ("cell/bias", [16])))  # fmt: skip
        zeros, none = tf.zeros([2, 4]), tf.zeros([4])
        tf.raw_ops.LSTMBlockCell(
            x=tf.zeros([2, 3]), cs_prev=zeros, h_prev=zeros, w=w, wci=none, wcf=none, wco=none, b=b, forget_bias=2.0
        )
        frozen = tf.matmul(tf.zeros([2, 7]), tf.constant(np.ones((7, 16), np.float32), name="iced/kernel"))
        gates = tf.split(tf.nn.bias_add(frozen, tf.constant(np.ones(16, np.float32), name="iced/bias")), 4, 1)
        tf.sigmoid(gates[2] + 0.25)
        tf.sigmoid(tf.split(tf.zeros([2, 8]), 4, 1)[2])  # not a cell
    found = read_forget_biases(graph.as_graph_def())
    assert found == {"cell/kernel": 2.0, "cell/bias": 2.0, "iced/kernel": 0.25, "iced/bias": 0.25}


def test_one_cell_with_two_forget_biases_is_refused() -> None:
    with tf.Graph().as_default() as graph:
        kernel = v1.get_variable("cell/kernel", [7, 16])
        for bias in (1.0, 2.0):
            tf.sigmoid(tf.split(tf.matmul(tf.zeros([2, 7]), kernel), 4, 1)[2] + bias)
    with pytest.raises(PortError, match=r"forget_bias of 1.0 in one place and of 2.0 in another"):
        read_forget_biases(graph.as_graph_def())


CUDNN_GRU = {
    "rnn/cudnn_compatible_gru_cell/gates/kernel": (7, 8),
    "rnn/cudnn_compatible_gru_cell/gates/bias": (8,),
    "rnn/cudnn_compatible_gru_cell/candidate/input_projection/kernel": (3, 4),
    "rnn/cudnn_compatible_gru_cell/candidate/input_projection/bias": (4,),
    "rnn/cudnn_compatible_gru_cell/candidate/hidden_projection/kernel": (4, 4),
    "rnn/cudnn_compatible_gru_cell/candidate/hidden_projection/bias": (4,),
}
LSTM = {"rnn/lstm_cell/kernel": (7, 16), "rnn/lstm_cell/bias": (16,)}
PEEPHOLES = LSTM | {f"rnn/lstm_cell/w_{gate}_diag": (4,) for gate in "ifo"}
PROJECTION = {
    "rnn/lstm_cell/kernel": (5, 16), "rnn/lstm_cell/bias": (16,), "rnn/lstm_cell/projection/kernel": (4, 2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "layer"),
    [(CUDNN_GRU, "gru"), (CUDNN_GRU, "gru before"), (PEEPHOLES, "lstm"), (PROJECTION, "lstm")],
    ids=["cudnn gru", "cudnn gru without reset_after", "peepholes", "projection"],
)
def test_a_cell_that_keras_does_not_have_is_refused_with_the_reason_and_a_way_out(
    shapes: dict[str, tuple[int, ...]], layer: str
) -> None:
    sequence = keras.Input((5, 3))
    made = keras.layers.LSTM(4) if layer == "lstm" else keras.layers.GRU(4, reset_after=layer == "gru")
    model = keras.Model(sequence, made(sequence))
    entries = [porting_entry(name, shape) for name, shape in shapes.items()]
    proposal = propose(entries, name_variables(model), layout="tf")
    assert not proposal.lines, proposal.table()
    for variable in proposal.missing:
        assert "which the layers of Keras do not have" in variable.reason, variable
        assert "py:module:factory" in variable.reason


def porting_entry(name: str, shape: tuple[int, ...]) -> Any:
    from engine.porting.proposals.propose import SourceEntry

    return SourceEntry(name, shape, np.dtype(np.float32))
