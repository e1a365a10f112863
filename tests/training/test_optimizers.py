"""Optimizers: against float64 references, with slots, t and decay for the selection alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.models import build_model
from engine.selection import filters
from engine.selection.variables import name_variables
from engine.training.losses import Loss
from engine.training.optimizer_state import Slots
from engine.training.optimizers import (
    SGD,
    Adam,
    AdamW,
    Momentum,
    Optimizer,
    OptimizerError,
    build_optimizer,
    layer_factors,
)

# Weights of order 1 and ten steps of some ten roundings of 1.1e-16 each: 1e-12 leaves room, and a
# wrong term of any of the formulas is above 1e-4.
BOUND = 1e-12
RATES = [0.05, 0.05, 0.1, 0.02, 0.05, 0.03, 0.05, 0.04, 0.01, 0.05]
SHAPES = {"dense/kernel": (3, 2), "dense/bias": (2,), "norm/gamma": (2,), "head/kernel": (2, 2), "head/bias": (2,)}


class Part(tf.Module):
    def __init__(self, **values: np.ndarray) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, tf.Variable(value, name=name))


class Tiny(tf.Module):
    """Variables of many kinds; the loss pulls each towards its target."""

    def __init__(self, seed: int = 0, dtype: Any = np.float64) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        values = {path: rng.standard_normal(shape).astype(dtype) for path, shape in SHAPES.items()}
        self.dense = Part(kernel=values["dense/kernel"], bias=values["dense/bias"])
        self.norm = Part(gamma=values["norm/gamma"])
        self.head = Part(kernel=values["head/kernel"], bias=values["head/bias"])

    def values(self) -> dict[str, np.ndarray]:
        return {entry.path: entry.variable.numpy() for entry in name_variables(self)}


TARGETS = {path: np.random.default_rng(7).standard_normal(shape) for path, shape in SHAPES.items()}


def loss_of(model: Tiny) -> Any:
    """Values scale_b * sum |v - target|^2 / 2: the gradient is mean(scale) * (v - target)."""

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        pull = tf.add_n([tf.reduce_sum(tf.square(e.variable - TARGETS[e.path])) / 2 for e in name_variables(model)])
        return Loss({"pull": (batch["scale"] * pull, None)})

    return loss_fn


def batches(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.uniform(0.5, 1.5, size) for size in rng.integers(1, 6, count)]


def train(model: Tiny, step: TrainStep, text: str, steps: Sequence[int], optimizer: Optimizer | None = None) -> None:
    scales = batches(len(RATES))
    for number in steps:
        step(
            select(model, text),
            {"scale": scales[number]},
            learning_rate=RATES[number],
            optimizer=optimizer,
        )


class Reference:
    """The same in numpy: every variable with its own slots and its own t."""

    def __init__(self, values: Mapping[str, np.ndarray], optimizer: Optimizer) -> None:
        self.values = {path: value.copy() for path, value in values.items()}
        self.optimizer = optimizer
        self.a: dict[str, Any] = {}
        self.m: dict[str, Any] = {}
        self.v: dict[str, Any] = {}
        self.t: dict[str, int] = {}
        self.start: dict[str, Any] = {}

    def train(
        self,
        paths: Sequence[str],
        steps: Sequence[int],
        *,
        decayed: Sequence[str] = (),
        factors: Mapping[str, float] | None = None,
    ) -> None:
        scales = batches(len(RATES))
        for number in steps:
            gradients = {p: np.mean(scales[number]) * (self.values[p] - TARGETS[p]) for p in paths}
            norm = math.sqrt(sum(float(np.square(g).sum()) for g in gradients.values()))
            clip = self.optimizer.clip_norm
            for path, gradient in gradients.items():
                rate = RATES[number] * (factors or {}).get(path, 1.0)
                if clip is not None and norm > clip:
                    gradient = gradient * (clip / norm)
                start = self.start.setdefault(path, self.values[path].copy())
                if path in decayed:
                    away = self.values[path] - (start if self.optimizer.decay_toward == "start" else 0.0)
                    self.values[path] = self.values[path] - rate * self.optimizer.weight_decay * away
                self.values[path] = self.values[path] - rate * self.change(path, gradient)

    def change(self, path: str, gradient: np.ndarray) -> np.ndarray:
        o = self.optimizer
        if isinstance(o, Momentum):
            self.a[path] = o.momentum * self.a.get(path, 0.0) + gradient
            return gradient + o.momentum * self.a[path] if o.nesterov else self.a[path]
        if isinstance(o, Adam):
            t = self.t[path] = self.t.get(path, 0) + 1
            self.m[path] = o.beta1 * self.m.get(path, 0.0) + (1 - o.beta1) * gradient
            self.v[path] = o.beta2 * self.v.get(path, 0.0) + (1 - o.beta2) * gradient**2
            correction = math.sqrt(1 - o.beta2**t) / (1 - o.beta1**t)
            return correction * self.m[path] / (np.sqrt(self.v[path]) + o.epsilon)
        return gradient


def close(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=BOUND, rtol=0, err_msg=path)


# --- the formulas ---


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(),
        SGD(weight_decay=0.1, clip_norm=0.7),
        Momentum(),
        Momentum(momentum=0.5, weight_decay=0.2),
        Momentum(nesterov=True),
        Adam(),
        Adam(beta1=0.8, beta2=0.9, epsilon=1e-3, clip_norm=0.5),
        AdamW(),
        AdamW(weight_decay=0.5, beta2=0.99),
    ],
    ids=lambda optimizer: type(optimizer).__name__.lower(),
)
def test_ten_steps_equal_a_float64_reference(optimizer: Optimizer) -> None:
    model = Tiny()
    reference = Reference(model.values(), optimizer)
    train(model, TrainStep(loss_of(model), optimizer), "@all", range(10))
    kernels = ["dense/kernel", "head/kernel"] if optimizer.weight_decay else []
    reference.train(list(SHAPES), range(10), decayed=kernels)
    close(model.values(), reference.values)


@pytest.mark.parametrize(
    "optimizer", [SGD(), Momentum(), Adam(), AdamW()], ids=lambda optimizer: type(optimizer).__name__.lower()
)
def test_what_is_frozen_keeps_its_bits_and_has_no_slots(optimizer: Optimizer) -> None:
    model = Tiny()
    before = model.values()
    step = TrainStep(loss_of(model), optimizer)
    train(model, step, "head/.*", range(5))
    for path in ("dense/kernel", "dense/bias", "norm/gamma"):
        assert model.values()[path].tobytes() == before[path].tobytes()
    assert set(step.slots.values) == set(step.slots.t) == {"head/kernel", "head/bias"}
    assert step.slots.bytes() == len(optimizer.slots) * 8 * 6


@pytest.mark.parametrize(
    "optimizer", [Momentum(), AdamW(weight_decay=0.1)], ids=lambda optimizer: type(optimizer).__name__.lower()
)
def test_an_unfrozen_variable_starts_at_t_zero_while_the_others_go_on(optimizer: Optimizer) -> None:
    model = Tiny()
    reference = Reference(model.values(), optimizer)
    step = TrainStep(loss_of(model), optimizer)
    train(model, step, "head/.*", range(4))
    train(model, step, "@all", range(4, 10))
    decayed = ["dense/kernel", "head/kernel"] if optimizer.weight_decay else []
    reference.train(["head/kernel", "head/bias"], range(4), decayed=decayed)
    reference.train(list(SHAPES), range(4, 10), decayed=decayed)
    close(model.values(), reference.values)
    assert step.slots.t == {path: 10 if path.startswith("head") else 6 for path in SHAPES}


def test_the_first_adam_step_after_unfreezing_is_one_learning_rate_long() -> None:
    """With the others' t of 9 it would be 0.49 of that: sqrt(1 - 0.999**9) / (1 - 0.9**9) * 0.1 / sqrt(0.001)."""
    model = Tiny()
    step = TrainStep(loss_of(model), Adam())
    train(model, step, "head/.*", range(8))
    before = model.values()["dense/kernel"]
    train(model, step, "@all", [8])
    moved = np.abs(model.values()["dense/kernel"] - before)
    # learning_rate * g / (|g| + epsilon / sqrt(0.001)): gradients here are above 1e-2, so 1 within 4e-5
    np.testing.assert_allclose(moved, RATES[8], rtol=1e-4)


def test_freezing_drops_slots_and_unfreezing_again_starts_anew() -> None:
    model = Tiny()
    optimizer = Adam()
    reference = Reference(model.values(), optimizer)
    step = TrainStep(loss_of(model), optimizer)
    train(model, step, "@all", range(3))
    train(model, step, "head/.*", range(3, 6))
    assert "dense/kernel" not in step.slots.values
    train(model, step, "@all", range(6, 10))
    reference.train(list(SHAPES), range(3))
    reference.train(["head/kernel", "head/bias"], range(3, 6))
    for path in ("dense/kernel", "dense/bias", "norm/gamma"):
        del reference.m[path], reference.v[path], reference.t[path]
    reference.train(list(SHAPES), range(6, 10))
    close(model.values(), reference.values)


def test_float32_variables_have_float32_slots() -> None:
    model = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=2).network
    slots = Slots()
    slots.fit(select(model, "@head"), Adam())
    assert {slot.dtype for both in slots.values.values() for slot in both.values()} == {tf.float32}
    assert slots.bytes() == 2 * 4 * (96 * 2 + 2)


# --- decay ---


def test_decay_moves_only_what_the_decay_filter_says() -> None:
    model = Tiny()
    optimizer = SGD(weight_decay=0.5, decay=filters.path("norm/.*|dense/bias"))
    reference = Reference(model.values(), optimizer)
    train(model, TrainStep(loss_of(model), optimizer), "@all", range(10))
    reference.train(list(SHAPES), range(10), decayed=["norm/gamma", "dense/bias"])
    close(model.values(), reference.values)


def test_the_default_decay_leaves_out_biases_norms_and_embeddings() -> None:
    from engine.selection.selection import matching_paths

    network = build_model("vit:mini,depth=1,layer_scale", image_shape=(8, 8, 1), outputs=2).network
    left_out = {e.path for e in name_variables(network)} - matching_paths(network, AdamW().decay)
    assert left_out == {
        "patch/bias",
        "class_token",
        "position_embedding",
        *(f"blocks/0/{norm}/{which}" for norm in ("norm1", "norm2") for which in ("gamma", "beta")),
        *(f"blocks/0/attention/{which}/bias" for which in ("query", "key", "value", "out")),
        "blocks/0/mlp/up/bias",
        "blocks/0/mlp/down/bias",
        "norm/gamma",
        "norm/beta",
        "head/bias",
    }


def test_a_frozen_variable_does_not_decay() -> None:
    model = Tiny()
    before = model.values()
    train(model, TrainStep(loss_of(model), AdamW(weight_decay=0.9)), "head/bias", range(3))
    assert model.values()["head/kernel"].tobytes() == before["head/kernel"].tobytes()
    assert model.values()["dense/kernel"].tobytes() == before["dense/kernel"].tobytes()


# --- clipping ---


def test_a_gradient_below_the_limit_keeps_its_bits() -> None:
    one, two = Tiny(), Tiny()
    train(one, TrainStep(loss_of(one), SGD()), "@all", range(5))
    train(two, TrainStep(loss_of(two), SGD(clip_norm=1e3)), "@all", range(5))
    for path in SHAPES:
        assert one.values()[path].tobytes() == two.values()[path].tobytes()


def test_the_clipping_norm_is_that_of_the_selection() -> None:
    model = Tiny()
    optimizer = SGD(clip_norm=0.1)
    before = model.values()
    result = TrainStep(loss_of(model), optimizer)(
        select(model, "head/.*"), {"scale": np.array([1.0])}, learning_rate=1.0
    )
    gradient = np.concatenate([(before[p] - TARGETS[p]).ravel() for p in ("head/kernel", "head/bias")])
    np.testing.assert_allclose(float(result.grad_norm), np.linalg.norm(gradient), rtol=1e-14)
    moved = np.concatenate([(before[p] - model.values()[p]).ravel() for p in ("head/kernel", "head/bias")])
    np.testing.assert_allclose(np.linalg.norm(moved), 0.1, rtol=1e-13)


# --- layer decay ---


def test_layer_factors_of_a_vit_count_blocks_from_the_output() -> None:
    network = build_model("vit:mini,depth=3", image_shape=(8, 8, 1), outputs=2).network
    factors = layer_factors(name_variables(network), 0.5)
    by_part = {path.split("/")[0] if not path.startswith("blocks") else path[:8]: f for path, f in factors.items()}
    assert by_part == {
        "patch": 1 / 16,
        "class_token": 1 / 16,
        "position_embedding": 1 / 16,
        "blocks/0": 1 / 8,
        "blocks/1": 1 / 4,
        "blocks/2": 1 / 2,
        "norm": 1.0,
        "head": 1.0,
    }
    assert {f for path, f in factors.items() if path.startswith("blocks/1/")} == {1 / 4}


def test_layer_factors_of_a_model_without_blocks_count_layers_with_weights() -> None:
    network = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=2).network
    factors = layer_factors(name_variables(network), 0.5)
    layers = [f"stages/{n}/{kind}" for n in range(4) for kind in ("conv", "norm")] + ["head"]
    assert {path: f for path, f in factors.items() if path.endswith(("kernel", "gamma"))} == {
        f"{layer}/{'gamma' if layer.endswith('norm') else 'kernel'}": 0.5 ** (8 - n) for n, layer in enumerate(layers)
    }
    assert factors["stages/3/norm/beta"] == factors["stages/3/norm/gamma"] == 0.5


def test_without_layer_decay_every_factor_is_one() -> None:
    assert set(layer_factors(name_variables(Tiny()), None).values()) == {1.0}
    assert set(layer_factors(name_variables(Tiny()), 1.0).values()) == {1.0}


@pytest.mark.parametrize(
    "optimizer",
    [SGD(layer_decay=0.5), AdamW(layer_decay=0.5, weight_decay=0.3)],
    ids=lambda optimizer: type(optimizer).__name__.lower(),
)
def test_layer_decay_scales_the_step_and_the_decay_alike(optimizer: Optimizer) -> None:
    model = Tiny()
    reference = Reference(model.values(), optimizer)
    train(model, TrainStep(loss_of(model), optimizer), "@all", range(10))
    factors = {path: {"dense": 0.25, "norm": 0.5, "head": 1.0}[path.split("/")[0]] for path in SHAPES}
    decayed = ["dense/kernel", "head/kernel"] if optimizer.weight_decay else []
    reference.train(list(SHAPES), range(10), decayed=decayed, factors=factors)
    close(model.values(), reference.values)


def test_layer_decay_counts_from_the_output_whatever_trains() -> None:
    model = Tiny()
    optimizer = SGD(layer_decay=0.5)
    reference = Reference(model.values(), optimizer)
    train(model, TrainStep(loss_of(model), optimizer), "dense/.*", range(3))
    paths = ["dense/kernel", "dense/bias"]
    reference.train(paths, range(3), factors=dict.fromkeys(paths, 0.25))
    close(model.values(), reference.values)


# --- decay toward the start ---


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(SGD(weight_decay=0.5, decay_toward="start"), marks=pytest.mark.slow),
        AdamW(weight_decay=0.5, decay_toward="start", clip_norm=1.0),
    ],
    ids=["sgd", "adamw"],
)
def test_decay_can_pull_to_the_values_from_which_a_variable_started(optimizer: Optimizer) -> None:
    model = Tiny()
    reference, step = Reference(model.values(), optimizer), TrainStep(loss_of(model), optimizer)
    train(model, step, "head/.*", range(4))
    reference.train(["head/kernel", "head/bias"], range(4), decayed=["head/kernel"])
    train(model, step, "@all", range(4, 8))  # now dense starts, and the head keeps its own start
    reference.train(list(SHAPES), range(4, 8), decayed=["head/kernel", "dense/kernel"])
    close(model.values(), reference.values)
    for path in ("head/kernel", "dense/kernel"):
        np.testing.assert_array_equal(step.slots.values[path]["start"].numpy(), Tiny().values()[path])
    train(model, step, "dense/.*", range(8, 9))  # the head is frozen, and starts anew afterwards
    before = model.values()["head/kernel"]
    train(model, step, "@all", range(9, 10))
    np.testing.assert_array_equal(step.slots.values["head/kernel"]["start"].numpy(), before)


def test_the_pull_to_the_start_is_the_same_in_micro_batches_and_with_averages() -> None:
    found = []
    for size in (None, 2):
        model = Tiny()
        optimizer = AdamW(weight_decay=0.5, decay_toward="start")
        step = TrainStep(loss_of(model), optimizer, micro_batch_size=size, ema=0.5)
        train(model, step, "@all", range(10))
        found.append(model.values() | {f"ema/{path}": value.numpy() for path, value in step.averages.values.items()})  # type: ignore[union-attr]
    for path, value in found[0].items():
        np.testing.assert_allclose(found[1][path], value, rtol=0, atol=1e-10)


def test_a_pull_to_the_start_does_nothing_in_the_first_step_and_holds_back_later() -> None:
    free, held = Tiny(), Tiny()
    sides = ((free, SGD()), (held, SGD(weight_decay=5.0, decay_toward="start")))
    steps = [TrainStep(loss_of(model), optimizer) for model, optimizer in sides]
    for (model, _), step in zip(sides, steps, strict=True):
        train(model, step, "@all", range(1))
    assert {path: value.tobytes() for path, value in free.values().items()} == {
        path: value.tobytes() for path, value in held.values().items()
    }
    for (model, _), step in zip(sides, steps, strict=True):
        train(model, step, "@all", range(1, 10))
    start = Tiny().values()["dense/kernel"]
    moved = [np.linalg.norm(model.values()["dense/kernel"] - start) for model in (free, held)]
    assert moved[1] < 0.9 * moved[0]
    with pytest.raises(OptimizerError, match="decay_toward='base': expected zero or start"):
        build_optimizer("adamw,decay_toward=base")


# --- slots: state and restore ---


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(SGD(), marks=pytest.mark.slow),
        pytest.param(Momentum(), marks=pytest.mark.slow),
        AdamW(),
        SGD(weight_decay=0.5, decay_toward="start"),
    ],
    ids=lambda optimizer: type(optimizer).__name__.lower(),
)
def test_training_goes_on_after_a_restore_as_if_never_stopped(optimizer: Optimizer) -> None:
    whole, half = Tiny(), Tiny()
    straight, first = TrainStep(loss_of(whole), optimizer), TrainStep(loss_of(half), optimizer)
    for model, step in ((whole, straight), (half, first)):
        train(model, step, "head/.*", range(3))
        train(model, step, "@all", range(3, 6))
    state = {name: array.copy() for name, array in first.slots.arrays()}
    resumed = TrainStep(loss_of(half), optimizer)
    resumed.slots.restore(name_variables(half), optimizer, state)
    assert resumed.slots.t == straight.slots.t
    train(whole, straight, "@all", range(6, 10))
    train(half, resumed, "@all", range(6, 10))
    for path in SHAPES:
        assert half.values()[path].tobytes() == whole.values()[path].tobytes()


def test_the_state_has_one_array_per_slot_and_one_t_per_variable() -> None:
    model = Tiny()
    step = TrainStep(loss_of(model), Adam())
    train(model, step, "head/.*", range(2))
    state = dict(step.slots.arrays())
    assert set(state) == {f"optimizer/head/{v}/{s}" for v in ("kernel", "bias") for s in ("m", "v", "t")}
    assert state["optimizer/head/kernel/m"].shape == (2, 2)
    assert state["optimizer/head/bias/t"] == 2
    assert state["optimizer/head/bias/t"].dtype == np.int64


def test_a_restore_forgets_what_was_there_and_takes_only_what_was_saved() -> None:
    model = Tiny()
    one, two = Slots(), Slots()
    one.fit(select(model, "head/.*"), Adam())
    two.fit(select(model, "dense/.*"), Adam())
    two.restore(name_variables(model), Adam(), dict(one.arrays()))
    assert set(two.t) == set(two.values) == {"head/kernel", "head/bias"}


@pytest.mark.parametrize("damage", [None, np.zeros((4, 1))])
def test_a_slot_that_is_missing_or_of_another_shape_is_refused(damage: np.ndarray | None) -> None:
    model = Tiny()
    slots = Slots()
    slots.fit(select(model, "@all"), Adam())
    state = dict(slots.arrays())
    if damage is None:
        del state["optimizer/head/kernel/v"]
    else:
        state["optimizer/head/kernel/v"] = damage
    found = "the slot was not saved" if damage is None else r"the saved shape is \[4, 1\]"
    with pytest.raises(OptimizerError, match=rf"optimizer/head/kernel/v: {found}; expected shape \[2, 2\]"):
        slots.restore(name_variables(model), Adam(), state)


def test_slots_of_another_kind_of_optimizer_are_made_anew() -> None:
    model = Tiny()
    slots = Slots()
    slots.fit(select(model, "@all"), Momentum())
    slots.advance(select(model, "@all"))
    slots.fit(select(model, "@all"), Adam())
    assert set(slots.values["head/bias"]) == {"m", "v"}
    assert set(slots.t.values()) == {0}
    slots.advance(select(model, "@all"))
    slots.fit(select(model, "@all"), AdamW())  # the same slots: kept
    assert set(slots.t.values()) == {1}


# --- errors ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(weight_decay=-0.1), "weight_decay=-0.1: expected a number of at least 0"),
        (lambda: SGD(weight_decay=math.nan), "weight_decay=nan"),
        (lambda: SGD(weight_decay=math.inf), "weight_decay=inf"),
        (lambda: SGD(layer_decay=0.0), "layer_decay=0: expected a number above 0 and at most 1"),
        (lambda: SGD(layer_decay=1.5), "layer_decay=1.5: expected a number above 0 and at most 1"),
        (lambda: SGD(clip_norm=0.0), "clip_norm=0: expected a number above 0"),
        (lambda: SGD(clip_norm=math.inf), "clip_norm=inf"),
        (lambda: Momentum(momentum=1.0), "momentum=1: expected a number of at least 0 and below 1"),
        (lambda: Momentum(momentum=-0.1), "momentum=-0.1"),
        (lambda: Adam(beta1=1.0), "beta1=1: expected a number of at least 0 and below 1"),
        (lambda: Adam(beta2=1.0), "beta2=1: expected a number of at least 0 and below 1"),
        (lambda: AdamW(beta2=math.nan), "beta2=nan"),
        (lambda: Adam(epsilon=0.0), "epsilon=0: expected a number above 0"),
        (lambda: Adam(weight_decay=0.1), "weight_decay=0.1: adam has no weight decay; use adamw"),
        (
            lambda: build_optimizer("adamm"),
            "optimizer='adamm': expected one of sgd, momentum, adam, adamw, rmsprop, adagrad, adadelta, ftrl; nearest: adam",
        ),
        (lambda: build_optimizer("sgd", momentum=0.9), "momentum: the optimizer sgd has no such hyperparameter"),
        (lambda: build_optimizer("sgd", slots=("m",)), "slots: the optimizer sgd has no such hyperparameter"),
        (lambda: build_optimizer("momentum", momentum=2.0), "momentum=2"),
    ],
)
def test_hyperparameters_out_of_range_are_refused_with_the_rule(make: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        make()
    assert message in str(caught.value)


def test_names_make_the_optimizers_they_name() -> None:
    assert build_optimizer("sgd") == SGD()
    assert build_optimizer("momentum", momentum=0.8, nesterov=True) == Momentum(momentum=0.8, nesterov=True)
    assert build_optimizer("adam", clip_norm=1.0) == Adam(clip_norm=1.0)
    assert build_optimizer("adamw") == AdamW(weight_decay=0.01)


def test_an_optimizer_is_a_value_that_cannot_change() -> None:
    assert hash(AdamW()) == hash(AdamW())
    assert AdamW() != AdamW(weight_decay=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        AdamW().weight_decay = 0.5  # type: ignore[misc]
