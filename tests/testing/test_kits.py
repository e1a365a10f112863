"""The test kits: an implementation that keeps its contract passes, and one that breaks a rule is told which."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import engine
from engine.data.part import Part
from engine.errors import InputError
from engine.models import build_model
from engine.testing import (
    ContractError,
    check_loss,
    check_metric,
    check_model,
    check_optimizer,
    check_schedule,
    check_source,
)
from engine.training.figures import build_metric
from engine.training.loss_kinds import KINDS, Values
from engine.training.metric_names import METRICS
from engine.training.optimizer_base import Optimizer, read_slot, write_slot
from engine.training.optimizers import AdamW, Momentum
from engine.training.schedules import parse

Case = tuple[Callable[[], Any], str]


def fail(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check()
    assert isinstance(caught.value, (ContractError, InputError))


def test_the_kits_are_where_the_docs_say_and_their_errors_are_assertions() -> None:
    assert engine.testing.check_source is check_source
    with pytest.raises(AssertionError, match="no method measure"):
        check_metric(object())


# ---- metrics


class Mean:
    """The mean output of examples: right, and to be broken."""

    name = "mean"

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        values = tf.cast(outputs[:, 0], tf.float64)
        weights = tf.ones_like(values) if weights is None else tf.cast(weights, tf.float64)
        return {"sum": tf.reduce_sum(values * weights), "weight": tf.reduce_sum(weights)}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> float:
        return float(sums["sum"] / sums["weight"]) if sums["weight"] else float("nan")


class MeanOfMeans(Mean):
    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        found = super().measure(outputs, labels, weights)
        return {"sum": found["sum"] / found["weight"], "weight": tf.ones([], tf.float64)}


class Unweighted(Mean):
    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        return super().measure(outputs, labels, None)


class Zeroed(Mean):
    """Knows only whether a weight is 0."""

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        return super().measure(outputs, labels, None if weights is None else tf.sign(weights))


class PerExample(Mean):
    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        return dict(super().measure(outputs, labels, weights)) | {"values": outputs[:, 0]}


class OfNone(Mean):
    def finalise(self, sums: Mapping[str, np.ndarray]) -> float:
        return float(sums["sum"]) / int(sums["weight"])


class InFloat32(Mean):
    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        return {name: tf.cast(value, tf.float32) for name, value in super().measure(outputs, labels, weights).items()}


class Counting(Mean):
    calls = 0

    def finalise(self, sums: Mapping[str, np.ndarray]) -> float:
        self.calls += 1
        return float(self.calls)


class InPython(Mean):
    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        return {"sum": float(outputs.numpy()[:, 0].astype(np.float64).sum()), "weight": float(len(outputs))}


METRIC_FAULTS: dict[str, tuple[Any, str]] = {
    "mean of means": (MeanOfMeans(), r"in batches of .*add|metric mean: the figure is .* in batches of"),
    "weights": (Unweighted(), "with weight 0 for some examples"),
    "weights as switches": (Zeroed(), "with weight 2 for some examples"),
    "shape": (PerExample(), r"metric mean: 'values' has shape \(24,\) for 24 examples and \(1,\) for one"),
    "empty": (OfNone(), "metric mean: finalise raised ZeroDivisionError"),
    "float32": (InFloat32(), "compute sums in float64"),
    "state": (Counting(), "another figure the second time"),
    "graph": (InPython(), "in a tf.function, metric mean: measure raised AttributeError"),
    "name": (type("X", (Mean,), {"name": "my mean"})(), "its name is 'my mean'"),
    "kept": (type("X", (Mean,), {"kept": "sum"})(), r"kept is 'sum'; expected a tuple"),
    "direction": (type("X", (Mean,), {"higher_is_better": "yes"})(), "higher_is_better is 'yes'"),
}


@pytest.mark.parametrize("name", METRIC_FAULTS)
def test_a_metric_that_breaks_a_rule_is_told_which(name: str) -> None:
    metric, message = METRIC_FAULTS[name]
    fail(lambda: check_metric(metric), message)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("f1", "r2") else pytest.param(name, marks=pytest.mark.slow)
        for name in METRICS
        if set(METRICS[name].kinds) & {"sigmoid", "mse"}  # those of pixels and boxes have tests of their own
    ],
)
def test_metrics_by_name_keep_the_contract(name: str) -> None:
    rng = np.random.default_rng(0)
    for kind in METRICS[name].kinds[-1:]:
        width = 2 if name != "confusion" and kind != "mse" else 1
        outputs = rng.standard_normal((24, width)).astype(np.float32)
        labels = rng.integers(0, 2, (24, width)).astype(np.float32)
        check_metric(build_metric(name, kind=kind, outputs=width), outputs, labels)


def test_a_metric_that_keeps_the_contract_passes() -> None:
    check_metric(Mean())
    check_metric(build_metric("auc", kind="softmax", outputs=3))


# ---- losses


def squared(outputs: Any, labels: Any, weights: Any) -> Any:
    return tf.reduce_mean((outputs - tf.cast(labels, outputs.dtype)) ** 2, axis=1)


def centred(outputs: Any, labels: Any, weights: Any) -> Any:
    return squared(outputs, labels - tf.reduce_mean(labels, axis=0), weights)


def normed(outputs: Any, labels: Any, weights: Any) -> Values:
    values = squared(outputs, labels, weights)
    weights = tf.ones_like(values) if weights is None else weights
    return Values(values, weights / tf.reduce_sum(weights))


ONES, ZEROS = np.ones((6, 1), np.float32), np.linspace(0, 1, 6, dtype=np.float32)[:, None]
LOSS_FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "mean": (lambda o, y, w: tf.reduce_mean(o - y), r"values have shape \(\); expected one for each example, \[6\]"),
    "others": (centred, "a value must depend on its example alone"),
    "weights of others": (normed, "weights of the examples 0 to 2 depend on the others"),
    "no weights": (lambda o, y, w: Values(squared(o, y, w), None), "was given weights and returned none"),
    "own weights": (lambda o, y, w: Values(squared(o, y, w), tf.ones([tf.shape(o)[0]])), "must count w times"),
    "no gradient": (lambda o, y, w: tf.stop_gradient(squared(o, y, w)), "values do not depend on the outputs"),
    "infinite": (lambda o, y, w: tf.math.log(y)[:, 0] + o[:, 0], "the value of example 0 is not finite"),
    "root at 0": (lambda o, y, w: tf.sqrt(tf.abs(o - y))[:, 0], "the gradient of example 5 is not finite"),
    "noise": (lambda o, y, w: squared(o, y, w) + tf.random.uniform([tf.shape(o)[0]]), "other values the second time"),
    "raises": (lambda o, y, w: 1 / 0, "loss raised ZeroDivisionError"),
    "numpy": (lambda o, y, w: tf.constant(np.square(o.numpy() - y.numpy())[:, 0]), "do not depend on the outputs"),
    "metric": (
        lambda o, y, w: Values(squared(o, y, w), w, {"error": tf.reduce_mean(o)}),
        "the metric 'error' is not a pair",
    ),
}


@pytest.mark.parametrize("name", LOSS_FAULTS)
def test_a_loss_that_breaks_a_rule_is_told_which(name: str) -> None:
    loss, message = LOSS_FAULTS[name]
    fail(lambda: check_loss(loss, ONES, ZEROS), message)


def test_all_losses_keep_the_contract() -> None:
    rng = np.random.default_rng(0)
    check_loss(squared, ONES, ZEROS)
    check_loss(KINDS["softmax"], label_smoothing=0.1)
    check_loss(KINDS["sigmoid"], rng.standard_normal((8, 3)), rng.integers(0, 2, (8, 3)).astype(np.float32))
    check_loss(KINDS["mse"], rng.standard_normal((8, 2)), rng.standard_normal((8, 2)))


# ---- models


class Net(tf.Module):
    """A right model, and to be broken."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.reshape(tf.range(6.0) - 2.5, [3, 2]))
        self.bias = tf.Variable(tf.zeros([2]))

    def __call__(self, x: Any, *, training: bool = False, seeds: Any = None) -> Any:
        return self.compute(x, training, seeds)

    def compute(self, x: Any, training: bool, seeds: Any) -> Any:
        return x @ self.kernel + self.bias


def net(compute: Callable[..., Any], **members: Any) -> Net:
    return type("Net", (Net,), {"compute": compute, **members})()


def plain(self: Net, x: Any, training: bool, seeds: Any) -> Any:
    return Net.compute(self, x, training, seeds)


def creates(self: Net, x: Any, training: bool, seeds: Any) -> Any:
    self.more = [*getattr(self, "more", []), tf.Variable(1.0)]
    return plain(self, x, training, seeds)


def moves(self: Net, x: Any, training: bool, seeds: Any) -> Any:
    self.bias.assign_add(tf.ones([2]))
    return plain(self, x, training, seeds)


def noisy(self: Net, x: Any, training: bool, seeds: Any) -> Any:
    return plain(self, x, training, seeds) + (tf.random.uniform([2]) if training else 0.0)


def one_seed(self: Net, x: Any, training: bool, seeds: Any) -> Any:
    return plain(self, x, training, seeds) + (
        tf.random.stateless_uniform(tf.shape(x)[:1], seeds[0])[:, None] * training
    )


def own_seeds(self: Net, x: Any, training: bool, seeds: Any) -> Any:
    if not training:
        return plain(self, x, training, seeds)
    return plain(self, x, training, seeds) * (tf.cast(seeds[:, :1] % 2, tf.float32) + 1.0)


MODEL_FAULTS: dict[str, tuple[Any, str]] = {
    "function": (lambda x: x, "expected a tf.Module or a Keras model"),
    "vector": (net(lambda s, x, t, k: plain(s, x, t, k)[:, 0]), r"shape \[4\] for 4 examples; expected \[4, ...\]"),
    "list": (net(lambda s, x, t, k: [plain(s, x, t, k)]), "returned list; expected a tensor"),
    "infinite": (net(lambda s, x, t, k: plain(s, x, t, k) / 0.0), "the output is not finite"),
    "creates": (net(creates), "a second call created variables"),
    "moves": (net(moves), "a call with training=False changed variables: bias"),
    "random": (net(lambda s, x, t, k: plain(s, x, t, k) + tf.random.uniform([2])), "must be deterministic, without dropout"),
    "others": (net(lambda s, x, t, k: plain(s, x - tf.reduce_mean(x, 0), t, k)), "must not depend on the others"),
    "noise": (net(noisy), "differs when it is computed again from the same seeds"),
    "one seed": (net(one_seed), "draw its random numbers from its own row of `seeds`"),
    "modes": (
        net(lambda s, x, t, k: {"a": plain(s, x, t, k)} if t else plain(s, x, t, k)),
        "with training=True the outputs have other names",
    ),
    "unused": (net(lambda s, x, t, k: x @ s.kernel), "the outputs do not depend on bias"),
    "numpy": (net(lambda s, x, t, k: plain(s, tf.constant(x.numpy()), t, k)), "in a tf.function with a batch of any size"),
    "outputs": (Net(), r"the model has the outputs 2; expected 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL_FAULTS)
def test_a_model_that_breaks_a_rule_is_told_which(name: str) -> None:
    model, message = MODEL_FAULTS[name]
    fail(lambda: check_model(model, (3,), outputs=5 if name == "outputs" else None), message)


class Pair(tf.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.age = Net(), Net()

    def __call__(self, x: Any) -> Any:
        return {"species": self.trunk(x["left"]), "age": self.age(x["right"])[:, :1]}


def test_models_with_several_inputs_and_outputs_and_those_of_the_house_keep_the_contract() -> None:
    check_model(net(own_seeds), (3,), outputs=2)
    batch = {"left": np.ones((3, 3), np.float32), "right": np.eye(3)}
    check_model(Pair(), batch, outputs={"species": 2, "age": 1})
    vit = build_model("vit:mini,depth=1,dropout=0.2", image_shape=(8, 8, 1), outputs=3).network
    check_model(vit, (8, 8, 1), outputs=3)


# ---- sources


class Squares:
    """A right source, and to be broken."""

    classes: Any = ("even", "odd")

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def __len__(self) -> int:
        return 40

    def read(self, positions: np.ndarray) -> Mapping[str, Any]:
        images = np.zeros([len(positions), 4, 4, 1], np.uint8)
        images += (positions + self.shift)[:, None, None, None].astype(np.uint8)
        return {"image": images, "label": positions % 2}

    def fingerprint(self) -> str:
        return f"squares {self.shift}"


def source(**changes: Any) -> Squares:
    """The source with other methods; ``more`` is added to what it reads."""
    more = changes.pop("more", None)
    if more is not None:
        changes["read"] = lambda self, positions: dict(Squares.read(self, positions)) | more(positions)
    made: Squares = type("Changed", (Squares,), changes)()
    return made


_numbers = itertools.count()
_buffer = np.zeros([80, 4, 4, 1], np.uint8)


def read_into_one_buffer(positions: np.ndarray) -> Mapping[str, Any]:
    _buffer[: len(positions)] = positions[:, None, None, None]
    return {"image": _buffer[: len(positions)]}


def sorted_read(self: Squares, positions: np.ndarray) -> Mapping[str, Any]:
    return Squares.read(self, np.sort(positions))


def numbered(number: int) -> Squares:
    return source(more=lambda p: {"x": np.full([len(p), 1], number, np.float32)})


SOURCE_FAULTS: dict[str, tuple[Any, str]] = {
    "methods": (object(), "train is object without __len__, read, fingerprint"),
    "empty": (source(__len__=lambda self: 0), "train has no examples"),
    "part": ({"validation": Squares()}, "there is no part train"),
    "raises": (source(read=lambda self, positions: 1 / 0), r"read\(\[0, .* raised ZeroDivisionError"),
    "a list": (source(read=lambda self, positions: [1]), "read returned list"),
    "length": (source(more=lambda p: {"image": np.zeros([1, 4, 4, 1])}), r"'image' has shape \[1, 4, 4, 1\] for"),
    "name": (source(more=lambda p: {"seeds": np.zeros([len(p), 2])}), "'seeds' is not the name of an input"),
    "no label": (source(read=lambda self, p: {"image": np.zeros([len(p), 2, 2, 1], np.uint8)}), "there is no label"),
    "no input": (source(read=lambda self, p: {"label": p}), "there is no input of the model"),
    "dtype": (source(more=lambda p: {"x": np.zeros([len(p), 2])}), "'x' is float64; expected uint8, float32"),
    "nan": (source(more=lambda p: {"x": np.full([len(p), 2], np.nan, np.float32)}), "'x' has values that are not finite"),
    "range": (source(more=lambda p: {"image": np.full([len(p), 2, 2, 1], 9, np.float32)}), "values from 9 to 9; expected 0 to 1"),
    "negative": (source(more=lambda p: {"label": -p}), "has labels below 0"),
    "classes": (source(more=lambda p: {"label": p % 3}), "has the class 2, but `classes` has 2 names"),
    "nan label": (source(more=lambda p: {"label": np.where(p > 3, np.nan, 1.0)}), "give a missing label the weight 0, in 'weight'"),
    "weight": (source(more=lambda p: {"weight": p - 1.0}), "weights that are not finite or below 0"),
    "order": (source(read=sorted_read), "'image' differs when it is read in another order, some twice"),
    "state": (source(more=lambda p: {"x": np.full([len(p), 1], next(_numbers), np.float32)}), "'x' differs when it is read"),
    "augmented": (source(more=lambda p: {"x": np.random.rand(len(p), 2).astype(np.float32)}), "'x' differs when it is read"),
    "dtype of some": (source(more=lambda p: {"x": np.zeros([len(p), 1], np.int32 if len(p) > 1 else np.int64)}), "'x' differs when it is read alone"),
    "buffer": (source(more=read_into_one_buffer), "read must return new arrays"),
    "fingerprint": (source(fingerprint=lambda self: None), r"fingerprint\(\) returned None; expected a text"),
    "address": (source(fingerprint=lambda self: object.__repr__(self)), "which has an address in memory"),
    "random fingerprint": (source(fingerprint=lambda self: str(next(_numbers))), "returns another text each time"),
    "made anew": (lambda: Squares(next(_numbers)), "made again, it has another fingerprint"),
    "data anew": (lambda: numbered(next(_numbers)), "'x' differs when it is read from a source that is made again"),
    "labels alone": (source(read_labels=lambda self, p: {"label": p % 2 + 1}), "'label' differs when it is read by read_labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCE_FAULTS)
def test_a_source_that_breaks_a_rule_is_told_which(name: str) -> None:
    given, message = SOURCE_FAULTS[name]
    fail(lambda: check_source(given), message)


def test_sources_that_keep_the_contract_pass() -> None:
    check_source(Squares(), other=Squares(1))
    check_source({"train": Squares(), "val": Squares(2)})
    check_source(Squares)
    missing = source(more=lambda p: {"label": np.where(p % 3, p, np.nan), "weight": (p % 3 > 0).astype(np.float32)})
    check_source(missing)
    rng = np.random.default_rng(0)
    check_source(Part(rng.integers(0, 256, (9, 2, 2, 1), np.uint8), np.arange(9), np.arange(9)))


def test_two_sources_with_one_fingerprint_are_told_apart() -> None:
    same = source(more=lambda p: {"label": (p + 1) % 2})
    fail(lambda: check_source(Squares(), other=same), "its fingerprint is that of the source with other examples")


# ---- optimizers and schedules


class Heavy(Optimizer):
    """A right optimizer: the sum of all gradients, and to be broken."""

    fixed_slots = ("sum",)

    def update(self, variable: Any, gradient: Any, rate: Any, slots: Any, powers: Any, constants: Any) -> None:
        total = read_slot(slots["sum"], variable) + gradient
        write_slot(slots["sum"], total)
        variable.assign_sub(rate * total)


class Remembering(Heavy):
    """Keeps its sums in variables of its own, which no checkpoint has."""

    _own: Any = None

    def update(self, variable: Any, gradient: Any, rate: Any, slots: Any, powers: Any, constants: Any) -> None:
        kept = SUMS.setdefault((id(self), variable.name, tuple(variable.shape)), [])
        if not kept:
            with tf.init_scope():
                kept.append(tf.Variable(tf.zeros(variable.shape)))
        kept[0].assign_add(gradient)
        variable.assign_sub(rate * kept[0])


SUMS: dict[Any, list[Any]] = {}
RULE_FAULTS: dict[str, tuple[Any, str]] = {
    "no update": (type("X", (Optimizer,), {}), "has no method update"),
    "slots": (type("X", (Heavy,), {"fixed_slots": ("a/b",)}), "expected a tuple of different names without `/`"),
    "text": (type("X", (Heavy,), {"fixed_slots": "sum"}), "has the slots 'sum'; expected a tuple"),
    "first": (type("X", (Heavy,), {"first_values": property(lambda s: {"v": 1.0})}), "first_values has 'v'"),
    "powers": (type("X", (Heavy,), {"powers": lambda s, t: t}), r"powers\(t\) returned .* expected float64 \[2, k\]"),
    "constants": (type("X", (Heavy,), {"constants": lambda s: [1.0]}), r"constants\(\) returned \[1.0\]"),
    "idle": (type("X", (Heavy,), {"update": lambda *a: None}), "two steps left head/kernel as it was"),
    "memory": (Remembering, "whatever an update remembers must be in its slots"),
    "raises": (type("X", (Heavy,), {"update": lambda *a: 1 / 0}), "X raised ZeroDivisionError"),
}


@pytest.mark.parametrize("name", RULE_FAULTS)
def test_an_optimizer_that_breaks_a_rule_is_told_which(name: str) -> None:
    given, message = RULE_FAULTS[name]
    fail(lambda: check_optimizer(given), message)


@pytest.mark.parametrize(
    "optimizer",
    [
        Heavy,
        pytest.param(AdamW(weight_decay=0.1), marks=pytest.mark.slow),
        pytest.param(Momentum(decay_toward="start", weight_decay=0.1), marks=pytest.mark.slow),
    ],
)
def test_optimizers_that_keep_the_contract_pass(optimizer: Any) -> None:
    check_optimizer(optimizer)


def test_a_schedule_must_be_a_function_of_its_arguments_that_gives_factors() -> None:
    check_schedule(lambda step, total: 1 - step / total)
    check_schedule(parse("cosine,warmup=3").factor_at)
    calls = itertools.count(1)
    for schedule, message in (
        (lambda step, total: -1.0, "at step 0 of 1 it returned -1.0; expected a finite factor"),
        (lambda step, total: float("inf"), "it returned inf"),
        (lambda step, total: None, "it returned None"),
        (lambda step, total: 1 / (total - 1), "it raised ZeroDivisionError: division by zero"),
        (lambda step, total: next(calls), "when it was asked again"),
        (lambda step: 1.0, "it raised TypeError"),
    ):
        fail(lambda schedule=schedule: check_schedule(schedule), message)  # type: ignore[misc]
