"""A step that XLA compiles whole: the same results, traced once, and refused with the operation where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.graphs import compilable
from engine.models import layers
from engine.training import compiling, optimizers
from engine.training.compiling import CompileError
from engine.training.losses import Loss
from engine.training.precision import LossScale

GRADIENT = 5e-6  # contract E2, in float32


class Tiny(tf.Module):
    """Dropout by per-example seeds, a product, a statistic that moves, and something frozen."""

    statistics = ("mean",)

    def __init__(self, compute: Any = tf.float32) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.compute = compute
        self.kernel = tf.Variable(rng.standard_normal((4, 3)), dtype=tf.float32, name="kernel")
        self.frozen = tf.Variable([1.0, 1e-40, -0.0], name="frozen")  # neither a denormal nor a sign may be lost
        self.mean = tf.Variable(0.0, trainable=False, name="mean")

    def loss(self, batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        x = layers.dropout(tf.cast(batch["x"], self.compute), 0.3, seeds=seeds, site=1)
        y = tf.cast(tf.matmul(x, tf.cast(self.kernel, self.compute)), tf.float32) + self.frozen
        terms = {"square": (tf.reduce_sum(tf.square(y), -1), batch["weight"]), "size": (tf.reduce_sum(y, -1), None)}
        return Loss(terms, regulariser={"kernel": tf.reduce_sum(tf.square(self.kernel))})


def made(jit_compile: str, micro_batch_size: int | None = 3, compute: Any = tf.float32, **more: Any) -> Any:
    model = Tiny(compute)
    optimizer = optimizers.AdamW(weight_decay=0.1, clip_norm=0.5)
    step = TrainStep(model.loss, optimizer, micro_batch_size=micro_batch_size, jit_compile=jit_compile, **more)
    return step, select(model, "kernel")


def batch(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    drawn = rng.integers(0, 2**31, (size, 2)).astype(np.int32)
    return {"x": rng.standard_normal((size, 4), np.float32), "weight": rng.random(size, np.float32), "seeds": drawn}


def moments(step: TrainStep) -> np.ndarray:
    """The gradient of the first step, up to a factor."""
    return step.slots.values["kernel"]["m"].numpy().astype(np.float64)


@pytest.mark.parametrize("size", [7, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("deterministic_ops")
def test_compiled_micro_batches_of_which_the_last_is_shorter_are_the_step_in_one_piece(size: int) -> None:
    """Also where the whole batch is shorter than a micro-batch, as the last one of an epoch may be."""
    plain, selection = made("off", None)
    expected = plain(selection, batch(size), learning_rate=0.1)
    step, selection = made("on", ema=0.9)
    proof = FreezeProof.begin(selection)
    result = step(selection, batch(size), learning_rate=0.1)
    assert float(result.loss) == pytest.approx(float(expected.loss), rel=1e-6)
    assert float(result.terms["square"]) == pytest.approx(float(expected.terms["square"]), rel=1e-6)
    assert np.linalg.norm(moments(step) - moments(plain)) / np.linalg.norm(moments(plain)) < GRADIENT
    assert proof.changed(selection) == []
    assert "_XlaMustCompile" in str(step._function(selection, step.optimizer, step.tensors(batch(size))).function_def)


@pytest.mark.usefixtures("deterministic_ops")
def test_a_compiled_step_in_float16_that_is_not_finite_changes_no_bit() -> None:
    step, selection = made("on", compute=tf.float16, loss_scale=LossScale(2.0**10), ema=0.9)
    for planted in (False, True, False):
        before = {e.path: e.variable.numpy().tobytes() for e in selection.variables}
        before |= {name: array.tobytes() for name, array in step.arrays()}
        given = batch(6)  # equal micro-batches
        given["x"][5, 1] = np.inf if planted else 1.0
        given["weight"][5] = 1.0
        result = step(selection, given, learning_rate=0.1)
        after = {e.path: e.variable.numpy().tobytes() for e in selection.variables}
        after |= {name: array.tobytes() for name, array in step.arrays()}
        assert result.skipped == planted
        same = {name for name in before if after[name] == before[name]}
        assert same == (set(before) if planted else {"frozen", "mean"} & set(before))
    assert (step.skipped, step.loss_scale.scale, step.traces) == (1, 2.0**9, 1)


# --- what cannot be compiled ---


def refuses(values: Any) -> Any:
    a = tf.Variable(1.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        with tf.name_scope("top/odd"):
            return Loss({"t": (values(a * batch["x"]), None)})

    return loss_fn, select({"a": a}, "a")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            lambda x: tf.py_function(lambda y: y, [x], tf.float32) + tf.zeros_like(x),
            "the operation EagerPyFunc (layer top/odd) cannot be compiled",
        ),
        (
            lambda x: tf.map_fn(lambda y: y * tf.strings.to_number(tf.strings.as_string(y)), x),
            "the operation AsString (",
        ),
        (
            lambda x: x * tf.random.uniform([3], seed=1),
            "the operation RandomUniform (layer top/odd/random_uniform) draws random numbers from a generator that XLA",
        ),
    ],
    ids=["python", "in a loop", "unseeded"],
)
def test_an_operation_that_cannot_be_compiled_is_named_before_anything_runs(values: Any, reason: str) -> None:
    loss_fn, selection = refuses(lambda x: tf.ensure_shape(values(x), [None]))
    step = TrainStep(loss_fn, optimizers.SGD(), jit_compile="on")
    given = {"x": np.ones(3, np.float32)}
    for ask in (lambda: step.micro_batch(selection, given), lambda: step(selection, given, learning_rate=0.1)):
        with pytest.raises(CompileError) as caught:
            ask()
        assert reason in str(caught.value)
        assert str(caught.value).startswith("jit_compile=on: the operation ")
        assert str(caught.value).endswith("; jit_compile=off runs it")
    assert float(selection.trained[0].variable) == 1.0


def test_an_operation_that_no_result_needs_does_not_count() -> None:
    def loss(x: Any) -> Any:
        tf.strings.as_string(x)
        return x

    loss_fn, selection = refuses(loss)
    TrainStep(loss_fn, optimizers.SGD(), jit_compile="on").micro_batch(selection, {"x": np.ones(3, np.float32)})


def test_what_only_xla_finds_is_named_and_nothing_has_changed() -> None:
    def grow(x: Any) -> Any:  # a loop whose number of turns is not known
        turns = tf.cast(tf.reduce_sum(tf.stop_gradient(x)), tf.int32)
        return tf.while_loop(lambda n, _: n < turns, lambda n, y: (n + 1, y * x), [0, x])[1]

    loss_fn, selection = refuses(grow)
    step = TrainStep(loss_fn, optimizers.SGD(), jit_compile="on")
    with pytest.raises(
        CompileError, match=r"^jit_compile=on: the operation \w*TensorList\w* \(layer top/odd/.* cannot be co"
    ):
        step(selection, {"x": np.ones(3, np.float32)}, learning_rate=0.1)
    assert float(selection.trained[0].variable) == 1.0
    assert step.steps == 0


def test_an_assertion_that_xla_leaves_out_is_told() -> None:
    loss_fn, selection = refuses(lambda x: (tf.debugging.assert_positive(x), x)[1])
    for choice, told in (
        ("on", ["XLA leaves out what the step asserts: the operation Assert (layer top/odd"]),
        ("off", []),
    ):
        step = TrainStep(loss_fn, optimizers.SGD(), jit_compile=choice)
        step.micro_batch(selection, {"x": np.ones(3, np.float32)})
        notes = step.notes(selection)
        assert len(notes) == len(told)
        assert all(note.startswith(start) for note, start in zip(notes, told, strict=True))


def test_auto_compiles_on_a_gpu_unless_an_operation_does_not_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiling.decide("auto")
    monkeypatch.setattr(compiling, "computing_kind", lambda: "gpu")
    assert compiling.decide("auto")
    assert not compiling.decide("off")
    monkeypatch.setattr(compilable, "find_obstacle", lambda *_, **__: "the operation X (layer Y) cannot be compiled")
    loss_fn, selection = refuses(lambda x: x)
    step = TrainStep(loss_fn, optimizers.SGD())
    step(selection, {"x": np.ones(3, np.float32)}, learning_rate=0.5)
    assert float(selection.trained[0].variable) == 0.5
    assert step.notes(selection) == [
        "the step runs without XLA (jit_compile=auto): the operation X (layer Y) cannot be compiled"
    ]


MESSAGES = {
    'Unimplemented padding for instruction: %Bitcast.1 = u64[6]{0} bitcast-convert(%s), metadata={op_type="Bitcast" '
    'op_name="while/StatefulPartitionedCall/drop/Bitcast" source_line=1221} [Op:__inference_step_7226]': "the operation "
    "Bitcast (layer drop) cannot be compiled (Unimplemented padding",
    "Input 1 to node `r/Reshape` must be a compile-time constant.\n\t [[{{node r/Reshape_1}}]]": "the operation Reshape "
    "(layer r) cannot be compiled (Input 1 to node",
    "Detected unsupported operations: AsString (No registered 'AsString' OpKernel for XLA_CPU_JIT devices compatible with "
    "node {{node l/AsString}})": "the operation AsString (layer l) cannot be compiled",
    "something else\nsecond line": "XLA cannot compile the step (something else)",
}


def traced(compiled: bool) -> Any:
    function = tf.function(lambda x: x + 1.0, jit_compile=compiled or None, autograph=False)
    return function.get_concrete_function(tf.TensorSpec([], tf.float32))


@pytest.mark.parametrize("message", MESSAGES)
def test_an_error_of_xla_names_the_operation(message: str) -> None:
    assert compilable.read_error(message).startswith(MESSAGES[message])
    refused = pytest.raises(CompileError, match=r"^jit_compile=auto: .*; jit_compile=off runs it$")
    with refused, compiling.explained("auto", traced(True)):
        raise tf.errors.InvalidArgumentError(None, None, message)


def test_an_error_of_a_step_that_is_not_compiled_stays_what_it_is() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError), compiling.explained("auto", traced(False)):
        raise tf.errors.InvalidArgumentError(None, None, "label out of range")


def test_a_choice_that_is_not_one_is_refused() -> None:
    with pytest.raises(CompileError, match=r"jit_compile='onn': expected auto, on or off; nearest: on"):
        made("onn")


def test_rematerialisation_that_xla_undoes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    selection = select(model, "kernel")
    steps = [TrainStep(model.loss, optimizers.SGD(), remat="blocks", jit_compile=choice) for choice in ("on", "off")]
    (told,), none = (step.notes(selection) for step in steps)
    assert told.startswith("remat=blocks saves no memory here: for a CPU, XLA")
    monkeypatch.setattr(compiling, "computing_kind", lambda: "gpu")
    assert none == steps[0].notes(selection) == []
