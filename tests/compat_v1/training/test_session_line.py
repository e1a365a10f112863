"""The frost line of a TF1 graph: what is below it is fed, not run, and training does not notice."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.errors import SessionError
from compat_v1.training import models as v1_models
from compat_v1.training.freezing import METHODS, Freezing, resolve_selection
from compat_v1.training.session_line import SessionLine
from compat_v1.training.session_loop import SessionLoop
from engine import TrainStep, select
from engine.data import EvalBatches, TrainBatches
from engine.data.part import Part
from engine.feature_cache.batches import EvalFeatureBatches, FeatureBatches
from engine.feature_cache.store import Features
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine, Refused
from engine.models import build_model
from engine.training import losses, optimizers
from engine.training.evaluation import Evaluator
from engine.training.losses import Loss
from engine.training.precision import LossScale
from engine.training.step_result import NonFiniteError

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).resolve().parents[3]
FIRST, TRAJECTORY = 1e-6, 1e-10  # contract E4: float32 first step; float64 after 50
CLASSES, EXAMPLES = 4, 8


class Case(NamedTuple):
    """A network of the engine, and what trains of it."""

    spec: str
    train: str


CASES = {
    "vit head": Case("vit:mini,depth=2", "head/.*"),
    "vit last 2 blocks": Case("vit:mini,depth=3", "@blocks[-2:] head/.*"),
    "cnn last stage, frozen statistics": Case("cnn:mini", "head/.* stages/3/.* !@stats"),
}
VIT_BLOCK = Case("vit:mini,depth=2", "@blocks[-1:] head/.*")
CNN = CASES["cnn last stage, frozen statistics"]


def steps(count: int, dtype: Any = tf.float32, *, weight: bool = False) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "image": rng.standard_normal((EXAMPLES, 8, 8, 1)).astype(dtype.as_numpy_dtype),
            "label": rng.integers(0, CLASSES, EXAMPLES),
            "seeds": rng.integers(0, 1 << 30, (EXAMPLES, 2), np.int32),
            "index": np.arange(EXAMPLES),
        }
        | ({"weight": rng.random(EXAMPLES)} if weight else {})
        for _ in range(count)
    ]


class Side:
    """A network of the engine and the session loop of a method, from the same weights."""

    def __init__(self, case: Case, dtype: Any, method: str, *, compute: Any = None, **options: Any) -> None:
        self.network = build_model(
            case.spec, image_shape=(8, 8, 1), outputs=CLASSES, dtype=dtype, compute=compute
        ).network
        # the default head is nearly zero
        kernel = self.network.head.kernel
        kernel.assign(tf.cast(np.random.default_rng(0).standard_normal(kernel.shape), kernel.dtype))
        self.selection = select(self.network, case.train)
        self.start = {entry.path: entry.variable.numpy() for entry in self.selection.variables}
        weight = options.pop("weight", False)
        self.loop = SessionLoop(
            losses.supervised_loss(v1_models.translate_network(self.network, self.selection)),
            Freezing(method, self.selection),
            options.pop("optimizer", optimizers.Adam()),
            steps(1, compute or dtype, weight=weight)[0],
            **options,
        )
        self.loop.assign(self.start)

    def cut(self, **options: Any) -> SessionLine:
        line = self.loop.cut(**options)
        assert isinstance(line, SessionLine), line
        return line

    def engine_line(self) -> FrostLine:
        line = cut_step(TrainStep(losses.supervised_loss(self.network), optimizers.Adam()), self.selection, steps(1)[0])
        assert isinstance(line, FrostLine), line
        return line


class Run(NamedTuple):
    losses: list[float]
    changes: np.ndarray
    norms: list[float]


def run(case: Case, count: int, dtype: Any, method: str, *, fed: bool, **options: Any) -> Run:
    """Trains from the same start; fed: with tensors made beforehand in batches of another size, as a cache would be."""
    with Side(case, dtype, method, **options).loop as loop:
        given = steps(count, dtype, weight=options.get("weight", False))
        start = joined(loop)
        if fed:
            line = loop.cut()
            assert isinstance(line, SessionLine), line
            images = np.concatenate([batch["image"] for batch in given])
            kept = [np.concatenate(parts) for parts in zip(*(line.prefix(i) for i in np.split(images, 2)), strict=True)]
            given = [
                {name: value for name, value in batch.items() if name != "image"}
                | {t.key: v[n * EXAMPLES : (n + 1) * EXAMPLES] for t, v in zip(line.tensors, kept, strict=True)}
                for n, batch in enumerate(given)
            ]
        found = [loop.step(batch, learning_rate=1e-3) for batch in given]
        return Run([float(w.loss) for w in found], joined(loop) - start, [float(w.grad_norm) for w in found])


def joined(loop: SessionLoop) -> np.ndarray:
    values = loop.session.run(list(loop.built.variables.values()))  # in one run: preparing one takes long
    return np.concatenate([value.astype(np.float64).ravel() for value in values])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# --- contract E4


def first_step(case: Case, method: str, **options: Any) -> None:
    """float32: the loss, and the gradient, which is what one step of SGD moves."""
    options |= {"optimizer": optimizers.SGD()}
    fed, plain = (run(case, 1, tf.float32, method, fed=f, **options) for f in (True, False))
    np.testing.assert_allclose(fed.losses, plain.losses, rtol=FIRST)
    np.testing.assert_allclose(fed.norms, plain.norms, rtol=FIRST)


def fifty_steps(case: Case, method: str, **options: Any) -> None:
    fed, plain = (run(case, 50, tf.float64, method, fed=f, **options) for f in (True, False))
    assert np.linalg.norm(plain.changes) > 1e-2
    np.testing.assert_allclose(fed.losses, plain.losses, rtol=TRAJECTORY)
    assert relative(fed.changes, plain.changes) < TRAJECTORY


@pytest.mark.parametrize(
    ("name", "method", "size"),
    [
        pytest.param("vit head", "trainable", None, marks=pytest.mark.slow),
        pytest.param("vit last 2 blocks", "stop_gradient", None, marks=pytest.mark.slow),
        ("cnn last stage, frozen statistics", "var_list", 3),
    ],
)
@pytest.mark.usefixtures("deterministic_ops")
def test_fed_equals_unfed(name: str, method: str, size: int | None) -> None:
    first_step(CASES[name], method, micro_batch_size=size)
    fifty_steps(CASES[name], method, micro_batch_size=size)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.usefixtures("deterministic_ops")
def test_fed_equals_unfed_in_all_other_cases(name: str, method: str, size: int | None) -> None:
    first_step(CASES[name], method, micro_batch_size=size)
    fifty_steps(CASES[name], method, micro_batch_size=size)


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_fed_equals_unfed_with_weights_in_micro_batches() -> None:
    options: dict[str, Any] = {"weight": True, "micro_batch_size": 3}
    fed, plain = (run(CNN, 3, tf.float64, "var_list", fed=f, **options) for f in (True, False))
    np.testing.assert_allclose(fed.losses, plain.losses, rtol=1e-12)
    assert relative(fed.changes, plain.changes) < TRAJECTORY


@pytest.mark.slow
@pytest.mark.parametrize("compute", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
@pytest.mark.usefixtures("deterministic_ops")
def test_sixteen_bits_cross_as_they_are(compute: str) -> None:
    """So that nothing is rounded twice; with the loss scale that float16 needs."""
    found = []
    for fed in (True, False):
        scale = {"loss_scale": LossScale()} if compute == "float16" else {}
        case = CNN if compute == "float16" else VIT_BLOCK
        side = Side(case, tf.float32, "trainable", compute=tf.as_dtype(compute), micro_batch_size=3, **scale)
        with side.loop as loop:
            given = steps(1, tf.as_dtype(compute))[0]
            if fed:
                line = side.cut()
                assert {t.dtype.name for t in line.tensors} <= {compute, "float32"}
                assert {t.dtype.name for t in line.tensors} & {compute}
                given = line.replace_images(given)
            step = loop.step(given, learning_rate=1e-3)
            assert not step.skipped
            found.append((float(step.loss), float(step.grad_norm)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


# --- where the line lies


@pytest.mark.parametrize("case", [pytest.param(VIT_BLOCK, marks=pytest.mark.slow), CNN], ids=str)
def test_the_line_is_the_engines_whatever_the_method(case: Case) -> None:
    seen, engine = [], None
    for method in METHODS:
        side = Side(case, tf.float32, method)
        with side.loop:
            line, engine = side.cut(), engine or side.engine_line()
            seen.append([line.digest(), *(t.name for t in line.tensors)])
            assert [(t.shape, t.dtype, t.bytes) for t in line.tensors] == [
                (t.shape, t.dtype, t.bytes) for t in engine.tensors
            ]
            assert [t.after for t in line.tensors] == [t.after for t in engine.tensors]
            assert (line.bytes, line.notes) == (engine.bytes, engine.notes)
            assert line.forward_share == pytest.approx(engine.forward_share, rel=1e-6)
            # a little less: TF1's optimizer also computes the gradient of what crosses
            assert 0.8 * engine.step_share < line.step_share <= engine.step_share
            image = steps(1)[0]["image"]
            for ours, theirs in zip(line.prefix(image), engine.prefix(image), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
            # the same operations; the fused kernel of BatchNorm is not what the engine computes
            assert (seen[-1][0] == engine.digest()) is (case is VIT_BLOCK)
    assert seen[0] == seen[1] == seen[2]


def test_what_is_below_is_not_run() -> None:
    """Neither the images nor what reads them: with every frozen variable lost, a fed step is the same."""
    sides = [Side(Case("cnn:mini", "head/.*"), tf.float32, "stop_gradient") for _ in range(2)]
    batch = steps(1)[0]
    found = []
    for lost, side in enumerate(sides):
        with side.loop as loop:
            line = side.cut()
            given = line.replace_images(batch)
            assert "image" not in given
            if lost:
                loop.assign({e.path: np.full_like(side.start[e.path], np.nan) for e in side.selection.frozen})
            found.append(float(loop.step(given, learning_rate=0.1).loss))
    assert found[0] == found[1]
    assert np.isfinite(found[0])


def test_a_limit_on_bytes_and_one_that_cannot_be_met() -> None:
    side = Side(CNN, tf.float32, "var_list")
    with side.loop as loop:
        line = side.cut()
        assert side.cut(most_bytes=line.bytes).bytes == line.bytes
        found = loop.cut(most_bytes=3)
        assert isinstance(found, Refused)
        assert "bytes per example, but the limit is 3" in found.describe()
        with pytest.raises(Exception, match="inputs='pixels': the batch has image, label, seeds"):
            loop.cut(images="pixels")


# --- evaluation


@pytest.mark.parametrize("case", [pytest.param(VIT_BLOCK, marks=pytest.mark.slow), CNN], ids=str)
def test_evaluation_is_fed_the_same_tensors(case: Case) -> None:
    side = Side(case, tf.float64, "trainable")
    with side.loop as loop:
        line = side.cut()
        parts = steps(3, tf.float64)
        parts[2] = {key: value[:5] for key, value in parts[2].items()}
        assert line.evaluation is None
        ours, theirs = loop.evaluate([line.replace_images(part) for part in parts]), loop.evaluate(parts)
        assert ours == pytest.approx(theirs, rel=1e-12)
        found = Evaluator(losses.supervised_loss(side.network))(side.selection, parts)
        assert ours["loss"] == pytest.approx(found.loss, rel=1e-10)


# --- models of its own


def dense(x: Any, units: int, name: str) -> Any:
    with v1.variable_scope(name):
        return tf.matmul(x, v1.get_variable("kernel", [x.shape[-1], units]))


def deep(x: Any) -> Any:
    """Much work, so that the line would not lie below it without a reason."""
    for _ in range(3):
        x = tf.sin(tf.matmul(tf.matmul(x, tf.ones([5, 300])), tf.ones([300, 5]) / 300.0))
    return x


Between = Callable[[Any, Mapping[str, Any], bool], Any]


def own(between: Between, train: str = "head/.*", method: str = "trainable", **options: Any) -> SessionLoop:
    """body -> what a test puts between -> head, on images of 6 numbers."""

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        x = between(dense(batch["image"], 5, "body"), batch, training)
        logits = dense(x, 3, "head")
        return Loss({"t": (tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits), None)})

    def once() -> None:
        given = {name: v1.placeholder(value.dtype, [None, *value.shape[1:]]) for name, value in small().items()}
        loss_fn(given, training=True, seeds=given["seeds"])

    freezing = Freezing(method, resolve_selection(once, train))
    return SessionLoop(loss_fn, freezing, optimizers.SGD(), small(), **options)


def small(count: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((count, 6)).astype(np.float32),
        "label": rng.integers(0, 3, count),
        "seeds": np.zeros((count, 2), np.int32),
    }


def line_of(loop: SessionLoop) -> SessionLine:
    """A line, at which a step gives what it gives without."""
    line = loop.cut()
    assert isinstance(line, SessionLine), line
    start, found = dict(loop.values()), []
    for batch in (line.replace_images(small()), small()):
        loop.assign(start)
        step = loop.step(batch, learning_rate=0.5)
        found.append([float(step.loss), float(step.grad_norm)])
    loop.assign(start)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    return line


def refused(loop: SessionLoop) -> str:
    with loop:
        found = loop.cut()
    assert isinstance(found, Refused), found.describe()
    return found.describe()


def scaled(x: Any, *_: Any) -> Any:
    """By a frozen variable, in the batch size that the graph asks of a tensor below the line."""
    scale = v1.get_variable("scale", [5], initializer=v1.ones_initializer())
    return deep(x) * scale + tf.zeros([tf.shape(x)[0], 5])


# In `make test`, the method that needs no other graph: where the line lies does not depend on the method, as the test of
# the engine's line shows for all three.
FAST_METHODS = [pytest.param(name, marks=[pytest.mark.slow] * (name != "var_list")) for name in METHODS]


@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize("method", FAST_METHODS)
def test_reference_variables_as_resource_variables(method: str, resource: bool) -> None:
    def between(x: Any, *_: Any) -> Any:
        return deep(x * v1.get_variable("scale", [5], initializer=v1.ones_initializer(), use_resource=resource))

    with own(between, method=method) as loop:
        assert [t.after for t in line_of(loop).tensors] == ["scale"]
    with own(between, "scale head/.*", method=method) as loop:
        line = line_of(loop)
        assert [t.after for t in line.tensors] == ["body/kernel"]
        assert line.notes == ()


def test_the_batch_size_is_asked_of_a_tensor_that_is_not_there() -> None:
    def between(x: Any, *_: Any) -> Any:
        first = v1.get_variable("head/first", [5], initializer=v1.ones_initializer())
        return deep(x) * first + tf.zeros([tf.shape(x)[0], 5]) * tf.cast(tf.shape(x)[1], tf.float32)

    with own(between, micro_batch_size=3) as loop:
        line = line_of(loop)
        assert line.forward_share > 0.9
        assert loop.evaluate([line.replace_images(small(5))]) == pytest.approx(loop.evaluate([small(5)]), rel=1e-6)


def test_a_train_op_moves_what_it_writes_so_that_is_above() -> None:
    """A counter in UPDATE_OPS: what reads it changes; a fed step still moves it."""

    def between(x: Any, _: Any, training: bool) -> Any:
        count = v1.get_variable("count", [], initializer=v1.zeros_initializer(), trainable=False)
        if training:
            v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, v1.assign_add(count, 1.0))
        return deep(x + count)

    with own(between) as loop:
        line = loop.cut()
        assert isinstance(line, SessionLine)
        assert [t.after for t in line.tensors] == ["body/kernel"]
        assert "count is state that the step itself changes" in line.notes[0]
        for _ in range(3):
            loop.step(line.replace_images(small()), learning_rate=0.1)
        assert dict(loop.values())["count"] == 3.0


@pytest.mark.parametrize("method", METHODS)
def test_dropout_below_is_told(method: str) -> None:
    with own(lambda x, _, training: deep(tf.nn.dropout(x, 0.5) if training else x), method=method) as loop:
        line = loop.cut()
        assert isinstance(line, SessionLine)
        assert [t.after for t in line.tensors] == ["body/kernel"]
        assert "RandomUniform draws its own random numbers" in line.notes[0]
    with own(lambda x, b, _: deep(x * tf.cast(b["label"][:, None], tf.float32))) as loop:
        assert [t.after for t in line_of(loop).tensors] == ["body/kernel"]


def test_dropout_at_the_images_is_refused() -> None:
    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        x = tf.nn.dropout(batch["image"], 0.5) if training else batch["image"]
        return Loss({"t": (tf.reduce_sum(dense(deep(dense(x, 5, "body")), 3, "head"), 1), None)})

    def once() -> None:
        loss_fn({"image": v1.placeholder(tf.float32, [None, 6])}, training=False, seeds=None)

    loop = SessionLoop(loss_fn, Freezing("trainable", resolve_selection(once, "head/.*")), optimizers.SGD(), small())
    assert "RandomUniform draws its own random numbers below the trained part" in refused(loop)
    side = Side(Case("vit:mini,depth=1,dropout=0.1", "head/.*"), tf.float32, "trainable")
    assert "draw from the examples' seeds" in refused(side.loop)


def test_batch_norm_in_training_mode_below_is_refused() -> None:
    """As a TF1 program has it whose is_training nobody turned off: frozen weights, statistics that move."""
    from compat_v1.training import layers

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        x = layers.batch_norm(batch["image"], training=True, name="bn")
        x = tf.reduce_mean(layers.conv(x, 4, 3, name="conv"), [1, 2])
        logits = layers.dense(x, CLASSES, name="head")
        return Loss({"t": (tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits), None)})

    def once() -> None:
        given = {n: v1.placeholder(v.dtype, [None, *v.shape[1:]]) for n, v in steps(1)[0].items()}
        loss_fn(given, training=True, seeds=None)

    for method in METHODS:
        freezing = Freezing(method, resolve_selection(once, "head/.*"))
        said = refused(SessionLoop(loss_fn, freezing, optimizers.SGD(), steps(1)[0]))
        assert "bn/moving_mean is state that the step itself changes" in said
        assert "in inference mode, the line would be higher" in said


@pytest.mark.parametrize("method", FAST_METHODS)
def test_everything_trained_is_refused(method: str) -> None:
    said = refused(Side(Case("cnn:mini", "@all"), tf.float32, method).loop)
    assert "no frozen tensor between the images and the trained part is cheaper to cache" in said
    assert "stages/0/conv/kernel trains and reads the images" in said


def test_evaluation_that_computes_something_else_is_refused_in_words() -> None:
    with own(lambda x, _, training: deep(tf.tanh(x) if training else tf.sigmoid(x))) as loop:
        line = line_of(loop)
        assert isinstance(line.evaluation, Refused)
        with pytest.raises(SessionError, match="it depends on the mode"):
            loop.evaluate([line.replace_images(small())])
        assert loop.evaluate([small()])["loss"] > 0


@pytest.mark.parametrize("where", ["model", "train op"])
def test_an_assertion_below_the_line_is_made_when_the_tensors_are(where: str) -> None:
    """Also one that the train op waits for."""

    def between(x: Any, _: Any, training: bool) -> Any:
        if where == "train op":
            if training:
                check = tf.debugging.assert_less(tf.abs(x), 1e3, "planted")
                v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, check)
            return deep(tf.tanh(x))
        with tf.control_dependencies([tf.debugging.assert_less(tf.abs(x), 1e3, "planted")]):
            return deep(tf.tanh(x))

    with own(between) as loop:
        line = line_of(loop)
        bad = small() | {"image": np.full((2, 6), 1e6, np.float32)}
        with pytest.raises(tf.errors.InvalidArgumentError, match="planted"):
            line.prefix(bad["image"])


def test_images_that_are_looked_at_in_every_step_cross_too() -> None:
    """As an operation with an effect wants; the last line that was cut counts."""

    def between(x: Any, batch: Mapping[str, Any], training: bool) -> Any:
        if training:
            check = tf.debugging.assert_all_finite(batch["image"], "planted").op
            v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, check)
        return deep(x)

    with own(between) as loop:
        line_of(loop)
        line = line_of(loop)
        assert [t.shape for t in line.tensors] == [(6,), (5,)]
        with pytest.raises(tf.errors.InvalidArgumentError, match="planted"):
            loop.step(line.replace_images(small()) | {"frozen0": np.full((4, 6), np.nan)}, learning_rate=0.1)


def test_what_is_added_up_and_what_is_not_finite_is_as_without_a_line() -> None:
    for size in (None, 3):
        with own(lambda x, *_: deep(x), micro_batch_size=size) as loop:
            line = line_of(loop)
            bad = line.replace_images(small())
            bad["frozen0"] = bad["frozen0"] * np.nan
            before = dict(loop.values())
            with pytest.raises(NonFiniteError, match="not applied"):
                loop.step(bad, learning_rate=0.1)
            assert all(value.tobytes() == before[path].tobytes() for path, value in loop.values())


@pytest.mark.parametrize("between", [
    lambda x, *_: deep(x - tf.reduce_mean(x, 0, keepdims=True)),
    lambda x, *_: deep(x / tf.cast(tf.shape(x)[0], tf.float32)),
    lambda x, *_: deep(tf.cumsum(x, 0)),
], ids=["mean", "batch size", "summed up"])  # fmt: skip
def test_what_mixes_examples_never_crosses(between: Between) -> None:
    with own(between) as loop:
        line = line_of(loop)
        assert [t.after for t in line.tensors] == ["body/kernel"]
        assert "depend on the other examples" in line.notes[0]


def test_loops_may_lie_below() -> None:
    def between(x: Any, *_: Any) -> Any:
        return tf.while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, deep(y)), [tf.constant(0), x])[1]

    with own(between) as loop:
        line = line_of(loop)
        assert line.tensors[0].name != "MatMul"
        assert line.digest() == line.digest()


def test_placeholders_of_the_models_own_are_hot() -> None:
    def between(x: Any, *_: Any) -> Any:
        return deep(x * v1.placeholder_with_default(1.0, [], name="temperature"))

    with own(between) as loop:
        assert [t.after for t in line_of(loop).tensors] == ["body/kernel"]


def test_a_batch_that_fits_neither_is_told() -> None:
    with own(lambda x, *_: deep(x)) as loop:
        batch = small()
        with pytest.raises(SessionError, match="expected 'image'"):
            loop.step({name: value for name, value in batch.items() if name != "image"}, learning_rate=0.1)
        line = line_of(loop)
        given = line.replace_images(batch)
        with pytest.raises(SessionError, match="expected 'frozen0'"):
            loop.step({name: value for name, value in given.items() if name != "frozen0"}, learning_rate=0.1)
        with pytest.raises(SessionError, match=r"frozen0: got shape \[4, 3\], expected \[B, 5\]"):
            loop.step(given | {"frozen0": given["frozen0"][:, :3]}, learning_rate=0.1)
        with pytest.raises(SessionError, match="expected 'label'"):
            loop.step({name: value for name, value in given.items() if name != "label"}, learning_rate=0.1)


# --- the cache


def part_of(count: int = 20) -> Part:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count + 7, 8, 8, 1), np.uint8)
    return Part(images, rng.integers(0, CLASSES, count), rng.permutation(count + 7)[:count])


@pytest.mark.slow
def test_a_cache_is_filled_by_a_session_and_trained_from(tmp_path: pathlib.Path) -> None:
    part = part_of()
    train, evaluated = TrainBatches(part, batch_size=EXAMPLES, seed=5), EvalBatches(part, batch_size=6)
    found = []
    for fed in (True, False):
        side = Side(VIT_BLOCK, tf.float32, "stop_gradient")
        with side.loop as loop:
            batches: Any = train
            evaluation: Any = evaluated
            if fed:
                line = side.cut()
                features = Features(tmp_path, line, train, data="data")
                assert features.fill(batch_size=7)
                batches, evaluation = FeatureBatches(train, features), EvalFeatureBatches(evaluated, features)
                again = Features(tmp_path, side.engine_line(), train, data="data")
                assert again.missing_rows == 0  # the engine's cache of the same prefix
            given = list(batches.between(0, 5))
            values = [float(loop.step(batch, learning_rate=1e-3).loss) for batch in given]
            found.append([*values, loop.evaluate(evaluation)["loss"]])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.slow
def test_a_phase_with_a_higher_line_goes_on_from_the_lower_ones_tensors(tmp_path: pathlib.Path) -> None:
    train = TrainBatches(part_of(), batch_size=EXAMPLES, seed=5)
    low, high = (
        Side(VIT_BLOCK, tf.float64, "trainable"),
        Side(CASES["vit head"], tf.float64, "var_list"),
    )
    with low.loop, high.loop:
        lower, higher = low.cut(), high.cut()
        images = steps(1, tf.float64)[0]["image"]
        between = higher.build_bridge(lower)
        assert not isinstance(between, Refused), between
        given = {t.key: v for t, v in zip(lower.tensors, lower.prefix(images), strict=True)}
        for ours, theirs in zip(between(given), higher.prefix(images), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        assert isinstance(lower.build_bridge(higher), Refused)
        caches = [Features(tmp_path, line, train, data="data") for line in (lower, higher)]
        caches[0].fill()
        higher._prefix = None  # type: ignore[assignment]
        assert caches[1].fill(lower=caches[0])
        high.loop.assign({"patch/bias": np.ones_like(high.start["patch/bias"])})
        assert isinstance(higher.build_bridge(lower), Refused)  # other values: not the same tensors


OLD = """
import sys
import tensorflow.compat.v1 as v1
v1.disable_v2_behavior()
sys.path[:0] = ["tests/compat_v1", "."]
import test_session_line as t

def loop(x, body):
    return v1.while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, body(y)), [v1.constant(0), x])[1]

def below(x, *_):
    return loop(v1.cond(v1.constant(True), lambda: x * 2.0, lambda: x), t.deep)

def above(x, *_):
    scale = v1.get_variable("head/scale", [5], initializer=v1.ones_initializer())
    return loop(t.deep(x), lambda y: y * scale)

for between in (below, above):
    with t.own(between, micro_batch_size=3) as made:
        line = t.line_of(made)
        print(line.tensors[0].name, "|", line.evaluation and line.evaluation.describe())
        if line.evaluation is None:
            ours, theirs = made.evaluate([line.replace_images(t.small())]), made.evaluate([t.small()])
            assert abs(ours["loss"] - theirs["loss"]) < 1e-6
"""


@pytest.mark.slow
def test_a_program_without_any_of_tf2s_behaviour() -> None:
    """No eager execution, reference variables, loops and branches of TF1's control flow below the line and above it."""
    done = subprocess.run(
        [sys.executable, "-c", OLD], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("while/Exit_1 | no frost line: while/")
    assert "is part of a loop of TF1's control flow, which has no digest" in first
    assert second == "Sin_2 | None"
