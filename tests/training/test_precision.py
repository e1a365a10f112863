"""Precision: the loss scale's moves, steps that are skipped whole, and what stays in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models import build_model
from engine.selection.variables import name_variables
from engine.training import losses, optimizers, precision
from engine.training.losses import Loss
from engine.training.precision import LossScale, PrecisionError
from engine.training.step import StepError
from engine.training.step_result import NonFiniteError

HALF = {tf.float16, tf.bfloat16}


def model(name: str, compute: Any) -> Any:
    spec = "vit:mini,depth=1" if name == "vit" else "cnn:mini"
    network = build_model(spec, image_shape=(8, 8, 1), outputs=4).network
    network.compute = compute
    return network


def batch(size: int = 6, *, planted: int | None = None) -> dict[str, Any]:
    """Images and labels; the image ``planted`` has an infinite pixel."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((size, 8, 8, 1), np.float32)
    if planted is not None:
        images[planted, 3, 3, 0] = np.inf
    return {"image": images, "label": rng.integers(0, 4, size)}


# --- names and the scale by itself ---


def test_an_unknown_precision_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        PrecisionError, match=r"precision='mixed_float61': expected one of float32, .*nearest: mixed_float16"
    ):
        precision.parse("mixed_float61")


def test_precisions_say_what_variables_and_computing_are_in() -> None:
    found = {name: (p.variables, p.compute, p.scaled) for name, p in precision.PRECISIONS.items()}
    assert found == {
        "float32": (tf.float32, tf.float32, False),
        "mixed_bfloat16": (tf.float32, tf.bfloat16, False),
        "mixed_float16": (tf.float32, tf.float16, True),
        "float64": (tf.float64, tf.float64, False),
    }
    assert precision.parse("mixed_float16") is precision.PRECISIONS["mixed_float16"]


def test_the_scale_halves_at_once_and_doubles_after_enough_finite_steps_in_a_row() -> None:
    scale = LossScale(scale=8.0, floor=2.0, cap=16.0, growth_every=3)
    found = []
    for finite in (True, True, False, True, True, True, True, True, True, True, True, True, False, False, False, False):
        scale.update(finite)
        found.append(scale.scale)
    # halved; doubled after 3; doubled after 3; kept by the cap; then down to the floor
    assert found == [8, 8, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16, 8, 4, 2, 2]


@pytest.mark.parametrize(
    "wrong", [{"scale": 0.5}, {"scale": 2.0**25}, {"floor": 0.0}, {"floor": -1.0}, {"scale": float("nan")}]
)
def test_a_scale_outside_its_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PrecisionError, match=r"expected a number from floor=.* to cap="):
        LossScale(**wrong)


def test_a_scale_that_never_waits_is_refused() -> None:
    with pytest.raises(PrecisionError, match="growth_every=0: expected at least 1"):
        LossScale(growth_every=0)


# --- steps that are not finite ---


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_a_model_in_float16_is_refused_without_a_loss_scale(name: str) -> None:
    network = model(name, tf.float16)
    step = TrainStep(losses.supervised_loss(network), optimizers.SGD())
    with pytest.raises(StepError, match=r"loss_scale=None: the model computes in float16, .*LossScale\(\)"):
        step(select(network, "@head"), batch(), learning_rate=0.1)


def test_images_in_float16_need_no_loss_scale() -> None:
    network = model("cnn", tf.float32)
    given = batch() | {"image": batch()["image"].astype(np.float16)}
    TrainStep(losses.supervised_loss(network), optimizers.SGD()).micro_batch(select(network, "@head"), given)


def state(step: TrainStep, variables: Any) -> dict[str, bytes]:
    """All bits of variables, slots, t and averages."""
    return {e.path: e.variable.numpy().tobytes() for e in variables} | {k: v.tobytes() for k, v in step.arrays()}


@pytest.mark.parametrize(("micro_batch_size", "compute"), [(2, tf.float16), (None, tf.float32)])
def test_an_infinite_pixel_skips_its_step_whole_and_nothing_else(micro_batch_size: int | None, compute: Any) -> None:
    network = model("cnn", compute)
    selection, variables = select(network, "stages/[123]/.* @head"), name_variables(network)
    assert selection.moving
    step = TrainStep(
        losses.supervised_loss(network),
        optimizers.AdamW(weight_decay=0.1, clip_norm=1.0),
        micro_batch_size=micro_batch_size,
        loss_scale=LossScale(2.0**10),
        ema=0.9,
    )
    assert not step(selection, batch(), learning_rate=1e-2).skipped  # slots, averages and t are in use
    before = state(step, variables)
    result = step(selection, batch(planted=3), learning_rate=1e-2)
    assert state(step, variables) == before
    assert result.skipped
    assert (result.loss_scale, step.loss_scale.scale) == (2.0**10, 2.0**9)
    assert (step.steps, step.skipped) == (2, 1)
    assert not step(selection, batch(), learning_rate=1e-2).skipped
    after = state(step, variables)
    assert {path for path in before if after[path] == before[path]} == {e.path for e in selection.frozen}
    assert set(step.slots.t.values()) == {2}


def one_variable(micro_batch_size: int | None = None, **settings: Any) -> tuple[Any, Any, TrainStep]:
    """Two variables, of which b has the gradient mean(x) and a the gradient 1."""
    a, b = tf.Variable(1.0), tf.Variable(1.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (a + b * batch["x"], None)})

    step = TrainStep(loss_fn, optimizers.Momentum(), micro_batch_size=micro_batch_size, ema=0.5, **settings)
    return select({"a": a, "b": b}, ".*"), (a, b), step


BAD, GOOD = {"x": np.array([1, np.inf, 1], np.float32)}, {"x": np.ones(3, np.float32)}


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_too_many_skipped_steps_in_a_row_end_the_run_and_name_the_variables(micro_batch_size: int | None) -> None:
    selection, _, step = one_variable(micro_batch_size, loss_scale=LossScale(64.0), give_up=3)
    for given in (BAD, BAD, GOOD, BAD, BAD):  # a good one between starts the count anew
        step(selection, given, learning_rate=0.1)
    with pytest.raises(NonFiniteError) as caught:
        step(selection, BAD, learning_rate=0.1)
    assert str(caught.value) == (
        "3 steps in a row were skipped, the last with loss scale 4; 1 of 2 gradients are not finite: b"
    )
    assert (step.steps, step.skipped) == (6, 5)


@pytest.mark.parametrize(
    "settings", [{}, {"loss_scale": LossScale(64.0), "nonfinite": "stop"}], ids=["default", "asked"]
)
def test_where_it_should_stop_the_first_such_step_raises_and_changes_nothing(settings: dict[str, Any]) -> None:
    selection, _, step = one_variable(**settings)
    step(selection, GOOD, learning_rate=0.1)
    before, counts = state(step, selection.variables), step.state()
    with pytest.raises(NonFiniteError, match=r"^step 2 was not applied; 1 of 2 gradients are not finite: b$"):
        step(selection, BAD, learning_rate=0.1)
    assert state(step, selection.variables) == before
    assert step.state() == counts


def test_skipping_can_be_asked_for_without_a_loss_scale() -> None:
    selection, (a, b), step = one_variable(nonfinite="skip")
    assert step(selection, BAD, learning_rate=0.1).skipped
    assert (float(a), float(b), step.skipped) == (1.0, 1.0, 1)


def one_kind_of_infinity(values: Any) -> str:
    """What the step says of a loss that is ``values(a, x)`` at a = 0 and x = 1."""
    a = tf.Variable(0.0)

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"t": (values(a, batch["x"]), None)})

    with pytest.raises(NonFiniteError) as caught:
        TrainStep(loss_fn, optimizers.SGD())(select({"a": a}, ".*"), GOOD, learning_rate=0.1)
    assert float(a) == 0.0
    return str(caught.value)


def test_an_infinite_gradient_of_a_finite_loss_counts() -> None:
    assert one_kind_of_infinity(lambda a, x: tf.sqrt(a * x)).endswith("1 of 1 gradients are not finite: a")


def test_an_infinite_loss_with_a_finite_gradient_counts() -> None:
    assert "all gradients are finite, but the loss" in one_kind_of_infinity(lambda a, x: a * x + np.float32(np.inf))


def test_a_scale_too_large_for_float16_comes_down_until_steps_train() -> None:
    network = model("cnn", tf.float16)
    step = TrainStep(losses.supervised_loss(network), optimizers.SGD(), loss_scale=LossScale(2.0**24))
    skipped = [step(select(network, "@head"), batch(), learning_rate=1e-3).skipped for _ in range(15)]
    assert skipped[0]
    assert not skipped[-1]
    assert skipped == sorted(skipped, reverse=True)
    assert step.loss_scale.scale == 2.0 ** (24 - sum(skipped))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"nonfinite": "skipp"}, "nonfinite='skipp': expected 'skip' or 'stop'"), ({"give_up": 0}, "give_up=0")],
)
def test_settings_that_do_not_exist_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=message):
        one_variable(**wrong)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_gradients_are_unscaled_before_they_are_clipped(micro_batch_size: int | None) -> None:
    found = []
    for scale in (None, LossScale(2.0**12)):
        selection, (a, b), step = one_variable(micro_batch_size, loss_scale=scale)
        clipped = optimizers.Momentum(clip_norm=1.0)
        result = step(selection, {"x": np.full(3, 2.0, np.float32)}, learning_rate=1.0, optimizer=clipped)
        found.append((float(result.grad_norm), float(result.loss), float(a), float(b)))
    np.testing.assert_array_equal(found[0], found[1])  # a power of two: exact
    np.testing.assert_allclose(found[0], [5**0.5, 3.0, 1 - 1 / 5**0.5, 1 - 2 / 5**0.5], rtol=1e-6)


# --- what stays in 32 bits ---


def first_gradient(compute: Any) -> np.ndarray:
    network = model("vit", compute)
    selection = select(network, "@all")
    scale = LossScale() if compute == tf.float16 else None
    step = TrainStep(losses.supervised_loss(network), optimizers.Momentum(), loss_scale=scale)
    step(selection, batch(), learning_rate=1e-3)
    for entry in selection.trained:
        assert entry.variable.dtype == tf.float32
        assert step.slots.values[entry.path]["momentum"].dtype == tf.float32
    # after one step the momentum is the gradient
    return np.concatenate([step.slots.values[entry.path]["momentum"].numpy().ravel() for entry in selection.trained])


def test_mixed_gradients_are_near_those_of_float32_and_variables_and_slots_stay_in_it() -> None:
    exact = first_gradient(tf.float32)
    # roundings of 11 and 8 bits; measured on a ViT: 1.5e-3 and 1.7e-2
    for compute, bound in ((tf.float16, 5e-3), (tf.bfloat16, 3e-2)):
        error = np.linalg.norm(first_gradient(compute) - exact) / np.linalg.norm(exact)
        assert 1e-5 < error < bound, compute  # above: it does compute in 16 bits


@pytest.mark.parametrize("compute", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize(
    ("name", "wide", "narrow"),
    [
        ("vit", {"Softmax", "Rsqrt", "SparseSoftmaxCrossEntropyWithLogits"}, {"MatMul", "BatchMatMulV2", "Erf"}),
        ("cnn", {"Rsqrt", "SquaredDifference", "SparseSoftmaxCrossEntropyWithLogits"}, {"Conv2D", "MatMul"}),
    ],
)
def test_norms_softmax_and_loss_are_in_32_bits_and_products_in_16(
    name: str, wide: set[str], narrow: set[str], compute: Any
) -> None:
    network = model(name, compute)
    assert network(batch()["image"]).dtype == tf.float32
    step = TrainStep(losses.supervised_loss(network), optimizers.SGD(), loss_scale=LossScale())
    micro = step.micro_batch(select(network, "@all"), batch())
    for op in (*micro.forward, *micro.backward):
        if op.type in wide:
            assert not {tensor.dtype for tensor in op.outputs} & HALF, op.name
        if op.type in narrow:
            assert op.outputs[0].dtype == compute, op.name
    assert wide | narrow <= {op.type for op in micro.forward}
    assert not {gradient.dtype for gradient in micro.function.structured_outputs["gradients"]} & HALF
