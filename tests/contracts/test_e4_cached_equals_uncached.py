"""E4: a step that gets the frozen part's outputs does what one that gets the images does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine
from engine.frostline.watch import frozen_output_norms
from engine.models import build_model
from engine.selection.selection import Selection
from engine.selection.variables import name_variables
from engine.training import losses, optimizers
from engine.training.evaluation import Evaluator
from engine.training.losses import Loss
from engine.training.precision import LossScale, parse

FIRST, TRAJECTORY = 1e-6, 1e-10  # the contract: float32 first step; float64 after 50
CLASSES = 4


class Case(NamedTuple):
    """A model, what trains of it, and how its images look."""

    make: Callable[[Any], Any]
    train: str
    image: tuple[int, int, int]
    loss: Callable[[Any], Any] = losses.supervised_loss


def vit(dtype: Any, depth: int = 3) -> Any:
    return build_model(f"vit:mini,depth={depth}", image_shape=(8, 8, 1), outputs=CLASSES, dtype=dtype).network


def vit_head(dtype: Any) -> Any:
    """With the large initial weights that training would give: the default head is nearly zero."""
    model = vit(dtype)
    model.head.kernel.assign(tf.cast(np.random.default_rng(0).standard_normal(model.head.kernel.shape), dtype))
    return model


def mobilenet(dtype: Any) -> Any:
    keras.utils.set_random_seed(0)
    spec = "keras:MobileNetV2,alpha=0.35"
    model = build_model(spec, image_shape=(32, 32, 3), outputs=CLASSES, dtype=dtype, compute=dtype).network
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:  # statistics of what the random weights give, else the features are all but 0
        layer.momentum = 0.0
    model(np.random.default_rng(0).standard_normal((16, 32, 32, 3)), training=True)
    return model


def branched(dtype: Any) -> Any:
    """Two branches that meet, twice; BatchNorm in both; the last layers read an early tensor too."""
    keras.utils.set_random_seed(0)
    with_dtype = {"dtype": dtype.name}
    image = keras.Input((12, 12, 3), **with_dtype)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="stem", **with_dtype)(image)
    a = keras.layers.BatchNormalization(name="bn_a", **with_dtype)(
        keras.layers.Conv2D(8, 3, padding="same", name="a", **with_dtype)(x)
    )
    b = keras.layers.Conv2D(8, 1, name="b", **with_dtype)(keras.layers.AveragePooling2D(1, **with_dtype)(x))
    x = keras.layers.ReLU(**with_dtype)(keras.layers.Add(**with_dtype)([a, b]))
    y = keras.layers.Conv2D(6, 3, name="c", **with_dtype)(keras.layers.Concatenate(**with_dtype)([x, b]))
    last = keras.layers.Conv2D(6, 3, name="last_conv", **with_dtype)(y)
    last = keras.layers.BatchNormalization(name="last_bn", **with_dtype)(last)
    z = keras.layers.Concatenate(**with_dtype)(
        [keras.layers.GlobalAveragePooling2D(**with_dtype)(last), keras.layers.GlobalMaxPooling2D(**with_dtype)(x)]
    )
    z = keras.layers.Dropout(0.3, seed=3, **with_dtype)(z)
    return keras.Model(image, keras.layers.Dense(CLASSES, name="last_dense", **with_dtype)(z))


class TwoHeads(tf.Module):
    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.body = vit(dtype, depth=1)
        self.other = tf.Variable(tf.random.stateless_normal([CLASSES, 1], [1, 2], dtype=dtype), name="other")


def two_losses(model: TwoHeads) -> Any:
    """A classifier and a regressor on one frozen part, each with a term and weights of its own."""

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        logits = model.body(batch["image"], training=training, seeds=seeds)
        size = tf.squeeze(tf.matmul(tf.nn.gelu(logits), model.other), -1)
        target = tf.cast(batch["label"], size.dtype)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
        terms = {"class": (values, batch["weight"]), "size": (tf.square(size - target), None)}
        return Loss(terms, regulariser={"other": 0.01 * tf.reduce_sum(model.other**2)}, metrics={"size": (size, None)})

    return loss_fn


CASES = {
    "vit head": Case(vit_head, "head/.*", (8, 8, 1)),
    "vit last 2 blocks": Case(vit, "@blocks[-2:] head/.*", (8, 8, 1)),
    "mobilenet head, frozen statistics": Case(mobilenet, "head/.*", (32, 32, 3)),
    "branched keras model, last layers": Case(branched, "last_.*", (12, 12, 3)),
    "two heads": Case(TwoHeads, "body/head/.* other", (8, 8, 1), two_losses),
}


def batches(case: Case, count: int, dtype: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "image": rng.standard_normal((8, *case.image)).astype(dtype.as_numpy_dtype),
            "label": rng.integers(0, CLASSES, 8),
            "seeds": rng.integers(0, 1 << 30, (8, 2), np.int32),
        }
        | ({"weight": rng.random(8)} if case.loss is two_losses else {})
        for _ in range(count)
    ]


class Run(NamedTuple):
    """What training gave; ``gradient``: of the first step, from the optimizer's first moments."""

    losses: list[float]
    gradient: np.ndarray
    changes: np.ndarray
    selection: Selection
    line: FrostLine | None


def run(case: Case, steps: int, dtype: Any, *, cached: bool, micro: int | None = None, **options: Any) -> Run:
    """Trains from the same start; cached: from prefixes made of other batches, as a cache would be."""
    model = case.make(dtype)
    selection = select(model, case.train)
    step = TrainStep(case.loss(model), optimizers.AdamW(weight_decay=0.01), micro_batch_size=micro, **options)
    given = batches(case, steps, dtype)
    line = None
    start = joined(selection)
    if cached:
        found = cut_step(step, selection, given[0])
        assert isinstance(found, FrostLine), found
        line = found
        stored = [line.prefix(tf.concat([b["image"], b["image"][:3]], 0)) for b in given]  # another batch size
        given = [
            {name: value for name, value in batch.items() if name != "image"}
            | {t.key: value[:8] for t, value in zip(line.tensors, values, strict=True)}
            for batch, values in zip(given, stored, strict=True)
        ]
    found_losses = []
    for batch in given:
        found_losses.append(float(step(selection, batch, learning_rate=1e-3).loss))
        if len(found_losses) == 1:  # after one step AdamW's first moments are the gradient, times 1 - beta1
            slots = [next(iter(step.slots.values[e.path].values())).numpy() for e in selection.trained]
            gradient = np.concatenate([slot.astype(np.float64).ravel() for slot in slots])
    return Run(found_losses, gradient, joined(selection) - start, selection, line)


def joined(selection: Selection) -> np.ndarray:
    entries = (*selection.trained, *selection.moving)
    return np.concatenate([entry.variable.numpy().astype(np.float64).ravel() for entry in entries])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("vit") or "mobilenet" in name.lower() else name
        for name in CASES
    ],
)
@pytest.mark.usefixtures("deterministic_ops")
def test_cached_equals_uncached(name: str) -> None:
    """The first step in float32, and 50 in float64."""
    cached, plain = (run(CASES[name], 1, tf.float32, cached=c) for c in (True, False))
    np.testing.assert_allclose(cached.losses, plain.losses, rtol=FIRST)
    assert relative(cached.gradient, plain.gradient) < FIRST
    cached, plain = (run(CASES[name], 50, tf.float64, cached=c) for c in (True, False))
    assert np.linalg.norm(plain.changes) > 1e-2
    np.testing.assert_allclose(cached.losses, plain.losses, rtol=TRAJECTORY)
    assert relative(cached.changes, plain.changes) < TRAJECTORY


@pytest.mark.usefixtures("deterministic_ops")
def test_in_three_uneven_micro_batches_with_remat_and_averages() -> None:
    case = Case(functools.partial(vit, depth=2), "@blocks[-1:] head/.*", (8, 8, 1))
    options: dict[str, Any] = {"micro": 3, "remat": "blocks", "ema": 0.9}
    cached, plain = (run(case, 20, tf.float64, cached=c, **options) for c in (True, False))
    np.testing.assert_allclose(cached.losses, plain.losses, rtol=TRAJECTORY)
    assert relative(cached.changes, plain.changes) < TRAJECTORY


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_two_terms_with_weights_in_three_uneven_micro_batches() -> None:
    cached, plain = (run(CASES["two heads"], 20, tf.float64, cached=c, micro=3) for c in (True, False))
    np.testing.assert_allclose(cached.losses, plain.losses, rtol=TRAJECTORY)
    assert relative(cached.changes, plain.changes) < TRAJECTORY


@pytest.mark.usefixtures("deterministic_ops")
def test_state_above_the_line_moves_as_it_does_uncached() -> None:
    """BatchNorm statistics that follow a trained layer, and the seeds of a Dropout above the line."""
    case = CASES["branched keras model, last layers"]
    cached, plain = (run(case, 5, tf.float64, cached=c) for c in (True, False))
    assert len(plain.selection.moving) == 2
    seeds = [[v.numpy().tolist() for v in r.selection.variables.generators.values()] for r in (cached, plain)]
    assert (
        seeds[0] == seeds[1] != [v.numpy().tolist() for v in name_variables(branched(tf.float64)).generators.values()]
    )
    for ours, theirs in zip(cached.selection.moving, plain.selection.moving, strict=True):
        np.testing.assert_allclose(ours.variable.numpy(), theirs.variable.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vit last 2 blocks", marks=pytest.mark.slow),
        "branched keras model, last layers",
        pytest.param("two heads", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("deterministic_ops")
def test_evaluation_from_the_same_tensors_is_the_same(name: str) -> None:
    case = CASES[name]
    model = case.make(tf.float64)
    selection, batch = select(model, case.train), batches(case, 1, tf.float64)[0]
    line = cut_step(TrainStep(case.loss(model), optimizers.SGD()), selection, batch)
    assert isinstance(line, FrostLine)
    evaluator = Evaluator(case.loss(model), watch=frozen_output_norms)
    assert cut_evaluation(evaluator, selection, line, batch) is None
    ours, theirs = evaluator(selection, [line.replace_images(batch)]), evaluator(selection, [batch])
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert ours.metrics == theirs.metrics or name == "two heads"
    np.testing.assert_allclose(ours.frozen_output_norm, theirs.frozen_output_norm, rtol=1e-12)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("deterministic_ops")
def test_mixed_precision_keeps_its_semantics(precision: str) -> None:
    """The tensors cross in the type that the step computes in, so that nothing is rounded twice."""
    numbers = parse(precision)
    found = []
    for cached in (True, False):
        spec = {"image_shape": (8, 8, 1), "outputs": CLASSES, "dtype": numbers.variables, "compute": numbers.compute}
        model = build_model("vit:mini,depth=2", **spec).network
        selection = select(model, "head/.* @blocks[-1:]")
        scale = LossScale() if numbers.scaled else None
        step = TrainStep(losses.supervised_loss(model), optimizers.SGD(), micro_batch_size=3, loss_scale=scale)
        batch = batches(CASES["vit head"], 1, tf.float32)[0]
        if cached:
            line = cut_step(step, selection, batch)
            assert isinstance(line, FrostLine)
            assert {t.dtype for t in line.tensors} <= {numbers.compute, tf.float32}
            batch = line.replace_images(batch)
        start = joined(selection)
        loss = step(selection, batch, learning_rate=1.0).loss
        found.append((float(loss), joined(selection) - start))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3)
    assert relative(found[0][1], found[1][1]) < 1e-2


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_larger_networks() -> None:
    cases = {
        "ViT-S/16, 2 blocks": Case(large("vit:S/16"), "@blocks[-2:] head/.*", (224, 224, 3)),
        "ResNet50": Case(large("keras:ResNet50"), "@layers[-9:] head/.*", (64, 64, 3)),
        "InceptionV3": Case(large("keras:InceptionV3"), "@layers[-20:] head/.*", (96, 96, 3)),
    }
    for name, case in cases.items():
        cached, plain = (run(case, 1, tf.float32, cached=c, micro=4) for c in (True, False))
        np.testing.assert_allclose(cached.losses, plain.losses, rtol=FIRST, err_msg=name)
        assert relative(cached.gradient, plain.gradient) < 5e-6, name
        assert cached.line is not None
        assert cached.line.forward_share > 0.5


def large(spec: str) -> Callable[[Any], Any]:
    def make(dtype: Any) -> Any:
        keras.utils.set_random_seed(0)
        shape = {"vit:S/16": (224, 224, 3), "keras:ResNet50": (64, 64, 3), "keras:InceptionV3": (96, 96, 3)}[spec]
        return build_model(spec, image_shape=shape, outputs=CLASSES, dtype=dtype, compute=dtype).network

    return make
