"""The session loop: precision, skipped steps, weights, regularisers, the Saver and resuming."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.errors import SessionError
from compat_v1.training import models as v1_models
from compat_v1.training.freezing import Freezing
from compat_v1.training.session_loop import SessionLoop
from compat_v1.training.train_op import translate_optimizer
from engine import InputError, TrainStep, data, select
from engine.models import build_model
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.precision import LossScale
from engine.training.step_result import NonFiniteError

v1 = tf.compat.v1


def batches(count: int, *, weight: bool = False) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        batch: dict[str, Any] = {
            "image": rng.standard_normal((6, 8, 8, 1)).astype(np.float32),
            "label": rng.integers(0, 4, 6),
            "seeds": rng.integers(0, 2**31, (6, 2)).astype(np.int32),
            "index": np.arange(6),
        }
        if weight:
            batch["weight"] = rng.random(6).astype(np.float32)
        found.append(batch)
    return found


def loop_of(
    spec: str, train: str, optimizer: Any, *, method: str = "var_list", compute: Any = None, **more: Any
) -> Any:
    """A loop, and the engine's side of it; both start from the same weights."""
    network = build_model(spec, image_shape=(8, 8, 1), outputs=4, compute=compute).network
    selection = select(network, train)
    start = {entry.path: entry.variable.numpy() for entry in selection.variables}
    loss_fn = losses.supervised_loss(v1_models.translate_network(network, selection))
    given = more.pop("batch", None) or batches(1, weight=more.pop("weight", False))[0]
    loop = SessionLoop(loss_fn, Freezing(method, selection), optimizer, given, **more)
    loop.assign(start)
    return loop, network, selection


@pytest.mark.parametrize(
    ("spec", "compute"), [pytest.param("vit:mini,depth=1", "bfloat16", marks=pytest.mark.slow), ("cnn:mini", "float16")]
)
def test_sixteen_bits_train_as_the_engine_does(spec: str, compute: str) -> None:
    scale = {"loss_scale": LossScale()} if compute == "float16" else {}
    loop, network, selection = loop_of(
        spec, "@all !@bias", optimizers.Momentum(), compute=tf.as_dtype(compute), micro_batch_size=4, **scale
    )
    scale = {"loss_scale": LossScale()} if compute == "float16" else {}
    step = TrainStep(losses.supervised_loss(network), optimizers.Momentum(), micro_batch_size=4, **scale)
    with loop:
        for batch in batches(3):
            mine, engine = loop.step(batch, learning_rate=0.02), step(selection, batch, learning_rate=0.02)
            assert not mine.skipped
            assert mine.loss_scale == engine.loss_scale
            # the two graphs round in other places: 11 and 8 bits
            assert mine.loss == pytest.approx(float(engine.loss), rel=2e-3 if compute == "float16" else 2e-2)
            assert mine.metrics.keys() == engine.metrics.keys()
        assert loop.steps == 3


@pytest.mark.parametrize("scaled", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(scaled: bool) -> None:
    scale = LossScale() if scaled else None
    loop, _, selection = loop_of("cnn:mini", "@all", optimizers.Adam(), loss_scale=scale)
    good, bad = batches(2)
    bad["image"][2] = np.inf
    with loop:
        loop.step(good, learning_rate=0.01)
        before = {v.op.name: value for v, value in zip(saved(loop), loop.session.run(saved(loop)), strict=True)}
        if scaled:
            assert loop.step(bad, learning_rate=0.01).skipped
            assert (loop.skipped, scale.scale) == (1, 2.0**14)
        else:
            with pytest.raises(NonFiniteError, match="not applied"):
                loop.step(bad, learning_rate=0.01)
        for variable, value in zip(saved(loop), loop.session.run(saved(loop)), strict=True):
            assert value.tobytes() == before[variable.op.name].tobytes(), variable.op.name
        assert any(entry.path in before for entry in selection.moving)
        loop.step(good, learning_rate=0.01)


def saved(loop: SessionLoop) -> list[Any]:
    with loop.built.graph.as_default():
        return list(v1.global_variables())


@pytest.mark.parametrize("size", [None, 4])
def test_weighted_steps_divide_by_the_sum_of_the_steps_weights(size: int | None) -> None:
    loop, network, selection = loop_of(
        "vit:mini,depth=1", "@head", optimizers.SGD(), weight=True, micro_batch_size=size
    )
    step = TrainStep(losses.supervised_loss(network), optimizers.SGD())
    with loop:
        for batch in batches(2, weight=True):
            mine, engine = loop.step(batch, learning_rate=0.1), step(selection, batch, learning_rate=0.1)
            assert mine.loss == pytest.approx(float(engine.loss), rel=1e-5)
            assert mine.grad_norm == pytest.approx(float(engine.grad_norm), rel=1e-4)
        nothing = batches(1, weight=True)[0] | {"weight": np.zeros(6, np.float32)}
        before = dict(loop.values())
        assert loop.step(nothing, learning_rate=0.1).skipped
        assert all(value.tobytes() == before[path].tobytes() for path, value in loop.values())


def test_a_regulariser_enters_once_a_step_and_for_the_selection_alone() -> None:
    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        with v1.variable_scope(v1.get_variable_scope(), regularizer=tf.keras.regularizers.l2(0.5)):
            kernel = v1.get_variable("kernel", [64, 4])
            frozen = v1.get_variable("frozen", [4])
        x = tf.reshape(batch["image"], [-1, 64])
        return Loss({"size": (tf.reduce_mean(tf.square(x @ kernel + frozen), -1), None)})

    from compat_v1.training.freezing import resolve_selection

    def build_once() -> None:
        loss_fn({"image": tf.zeros([1, 8, 8, 1])}, training=True, seeds=None)

    results = []
    for method in ("trainable", "stop_gradient", "var_list"):
        for size in (None, 4):
            selection = resolve_selection(build_once, "kernel")
            with SessionLoop(
                loss_fn, Freezing(method, selection), optimizers.SGD(), batches(1)[0], micro_batch_size=size
            ) as loop:
                loop.assign({"kernel": np.full((64, 4), 0.1, np.float32), "frozen": np.full(4, 3.0, np.float32)})
                outcome = loop.step(batches(1)[0], learning_rate=0.1)
                assert outcome.loss == pytest.approx(outcome.terms["size"] + 0.5 * 64 * 4 * 0.01, rel=1e-5)
                values = dict(loop.values())
                assert values["frozen"].tolist() == [3.0] * 4
                results.append(values["kernel"])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5)


def test_resuming_goes_on_with_the_same_bits_past_a_damaged_checkpoint(tmp_path: pathlib.Path) -> None:
    source = data.open_data("fashion_mnist_mini", train_examples=48)
    stream = data.TrainBatches(source.train, batch_size=16, seed=1)

    def make() -> SessionLoop:
        network = build_model("cnn:mini", image_shape=source.image_shape, outputs=10, seed=3).network
        selection = select(network, "@all !stages/0/.*")
        start = {entry.path: entry.variable.numpy() for entry in selection.variables}
        loss_fn = losses.supervised_loss(v1_models.translate_network(network, selection))
        loop = SessionLoop(loss_fn, Freezing("stop_gradient", selection), optimizers.Adam(), stream.at(0),
                           loss_scale=LossScale(growth_every=2))  # fmt: skip
        loop.assign(start)
        return loop

    with make() as loop:
        for number in range(5):
            loop.step(stream.at(number), learning_rate=0.01)
            if number in (2, 3):
                prefix = loop.save(tmp_path)
        wanted, scale = dict(loop.values()), loop.loss_scale
    damaged = pathlib.Path(f"{prefix}.index")
    damaged.write_bytes(damaged.read_bytes()[:100])
    with make() as loop:
        warnings: list[str] = []
        assert loop.restore(tmp_path, warn=warnings.append) == 3
        assert len(warnings) == 1
        assert "model.ckpt-4" in warnings[0]
        for number in range(loop.steps, 5):
            loop.step(stream.at(number), learning_rate=0.01)
        assert loop.loss_scale == scale
        for path, value in loop.values():
            assert value.tobytes() == wanted[path].tobytes(), path
        names = [name for name, _ in tf.train.list_variables(str(tmp_path / "model.ckpt-3"))]
        assert {"stages/0/conv/kernel", "stages/0/norm/moving_mean", "head/kernel/Adam", "global_step"} <= set(names)
        assert "stages/0/conv/kernel/Adam" not in names
        for file in tmp_path.glob("*.index"):
            file.write_bytes(b"no")
        with pytest.raises(SessionError, match="none of its 2 checkpoints"):
            loop.restore(tmp_path, warn=warnings.append)
        assert loop.restore(tmp_path / "elsewhere") == 0


def test_evaluation_and_summaries(tmp_path: pathlib.Path) -> None:
    loop, network, _ = loop_of("cnn:mini", "@all", optimizers.SGD(), summaries=tmp_path)
    parts = [batches(1)[0], {name: value[:2] for name, value in batches(2)[1].items()}]
    with loop:
        found = loop.evaluate(parts)
        images = np.concatenate([part["image"] for part in parts])
        labels = np.concatenate([part["label"] for part in parts])
        logits = network(tf.constant(images)).numpy()
        assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))
        losses_ = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()
        assert found["loss"] == pytest.approx(losses_.mean(), rel=1e-5)
        loop.step(parts[0], learning_rate=0.1)
    (file,) = tmp_path.glob("events*")
    tags = {value.tag for event in v1.train.summary_iterator(str(file)) for value in event.summary.value}
    assert tags == {"train/loss", "train/grad_norm", "train/learning_rate", "train/accuracy"}


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(SessionError, match="micro_batch_size=0"):
        loop_of("cnn:mini", "@all", optimizers.SGD(), micro_batch_size=0)
    with pytest.raises(SessionError, match="seeds"):
        loop_of("cnn:mini", "@all", optimizers.SGD(), batch={"image": batches(1)[0]["image"]})
    for spec, message in (
        (
            "adamw,epsilon_placement=corrected",
            "epsilon_placement=corrected: AdamOptimizer of tf.compat.v1.train always has",
        ),
        ("rmsprop,epsilon_placement=outside", "epsilon_placement=outside: RMSPropOptimizer"),
        (
            "rmsprop,initial_accumulator=0",
            r"initial_accumulator=0\.0: RMSPropOptimizer .* always has 1\.0; leave it out",
        ),
        ("adagrad,epsilon=1e-7", "epsilon=1e-07: AdagradOptimizer"),
    ):
        with pytest.raises(SessionError, match=message):
            translate_optimizer(optimizers.build_optimizer(spec), tf.constant(0.1, tf.float64), {tf.float32})
    loop, _, _ = loop_of("cnn:mini", "@head", optimizers.Ftrl())
    with loop, pytest.raises(InputError, match="learning_rate=0: ftrl divides by it"):
        loop.step(batches(1)[0], learning_rate=0.0)
    loop, _, _ = loop_of("cnn:mini", "@all", optimizers.SGD())
    with loop:
        with pytest.raises(SessionError, match="'heat/kernel': the graph has no variable"):
            loop.assign({"heat/kernel": np.zeros(3)})
        with pytest.raises(SessionError, match=r"'head/bias': got shape \[3\], expected \[4\]"):
            loop.assign({"head/bias": np.zeros(3)})
