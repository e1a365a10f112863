"""E1 for layers with a state of their own: what is frozen keeps every bit, or the step refuses before it has trained."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.models import build_model
from engine.selection import filters
from engine.selection.proof import digests
from engine.selection.variables import name_variables
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.microbatch import StepError

SHAPE, CLASSES = (6, 6, 3), 3
L = keras.layers


class RawNorm(L.Layer):
    """Statistics and a scale in plain tf.Variables, as written for Keras 2."""

    def build(self, shape: Any) -> None:
        self.mean = tf.Variable(tf.zeros([shape[-1]]), trainable=False, name="mean")
        self.scale = tf.Variable(tf.ones([shape[-1]]), name="scale")
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, [0, 1, 2]))
        return (x - self.mean) * self.scale


class CodeBook(L.Layer):
    """The nearest of 4 codes, which follow their examples in training; counts in integers. No weights at all."""

    def build(self, shape: Any) -> None:
        self.codes = self.add_weight(name="codes", shape=(4, shape[-1]), initializer="random_normal", trainable=False)
        self.used = self.add_weight(name="used", shape=(4,), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        nearest = tf.argmin(tf.reduce_sum((x[..., None, :] - self.codes.value) ** 2, -1), -1)
        picked = tf.gather(self.codes.value, nearest)
        if training:
            self.codes.assign(0.9 * self.codes + 0.1 * tf.reduce_mean(x))
            self.used.assign_add(tf.reduce_sum(tf.one_hot(nearest, 4, dtype=tf.int32), [0, 1, 2]))
        return x + tf.stop_gradient(picked - x)


class Updating(L.Layer):
    """Keeps a range of its inputs by a method ``update_state``, also in a metric."""

    def build(self, shape: Any) -> None:
        self.high = self.add_weight(name="high", shape=(), initializer="ones", trainable=False)
        self.gain = self.add_weight(name="gain", shape=(), initializer="ones")
        self.seen = keras.metrics.Mean(name="seen")

    def update_state(self, x: Any) -> None:
        self.high.assign(tf.maximum(0.9 * self.high, tf.reduce_max(x)))
        self.seen.update_state(x)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.update_state(x)
        return self.gain * x / self.high


class HiddenModule(tf.Module):
    """A scale and a moving mean in a tf.Module, which a Keras layer does not list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = {"scale": tf.Variable([1.0] * 4), "mean": tf.Variable([0.0] * 4, trainable=False)}

    def __call__(self, x: Any, training: bool) -> Any:
        if training:
            self.parts["mean"].assign(0.9 * self.parts["mean"] + 0.1 * tf.reduce_mean(x, [0, 1, 2]))
        return (x - self.parts["mean"]) * self.parts["scale"]


class WithModule(L.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = HiddenModule()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.inner(x, training)


class Sequence(L.Layer):
    """Rows of an image through an LSTM that keeps its state from batch to batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lstm = L.LSTM(4, return_sequences=True, return_state=True)

    def build(self, shape: Any) -> None:
        self.lstm.build((shape[0], shape[1], shape[2] * shape[3]))
        self.state = self.add_weight(name="state", shape=(2, 4), initializer="zeros", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        rows = tf.reshape(x, [-1, x.shape[1], x.shape[2] * x.shape[3]])
        start = [tf.repeat(self.state.value[n : n + 1], tf.shape(x)[0], 0) for n in (0, 1)]
        y, h, c = self.lstm(rows, initial_state=start, training=training)
        if training:
            self.state.assign(tf.stack([tf.reduce_mean(h, 0), tf.reduce_mean(c, 0)]))
        return y[:, :, None, :]


class SavedNorm(tf.Module):
    """What is saved for TFSMLayer: an endpoint for training, which moves a mean, and one for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 3, 4, 4], [1, 2]), name="kernel")
        self.mean = tf.Variable(tf.zeros([4]), trainable=False, name="moving_mean")

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 4])])
    def serve(self, x: Any) -> Any:
        return tf.nn.conv2d(x, self.kernel, 1, "SAME") - self.mean

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 4])])
    def train(self, x: Any) -> Any:
        y = tf.nn.conv2d(x, self.kernel, 1, "SAME")
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(y, [0, 1, 2]))
        return y - self.mean


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, module = str(tmp_path_factory.mktemp("saved")), SavedNorm()
    tf.saved_model.save(module, folder, signatures={"serving_default": module.serve, "train": module.train})
    return folder


def network(middle: Callable[[Any], Any]) -> keras.Model:
    """A convolution, what ``middle`` adds, and a classifier ``top``."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = middle(L.Conv2D(4, 3, name="conv")(image))
    return keras.Model(image, L.Dense(CLASSES, name="top")(L.GlobalAveragePooling2D()(L.Activation("tanh")(x))))


def shared(x: Any, name: str) -> Any:
    norm = RawNorm(name=name)
    return norm(norm(x))


def nested(x: Any, name: str) -> Any:
    return keras.Sequential([RawNorm(name="inner"), L.BatchNormalization(name="bn")], name=name)(x)


class Kind(NamedTuple):
    """A layer, under a name; whether a frozen one has to be held; and which of its state moves with `@stats`."""

    middle: Callable[[Any, str], Any]
    held: bool
    moves: tuple[str, ...]


MOMENTS = ("moving_mean", "moving_variance")
KINDS = {
    "BatchNormalization": Kind(lambda x, name: L.BatchNormalization(name=name)(x), False, MOMENTS),
    "SpectralNormalization": Kind(
        lambda x, name: L.SpectralNormalization(L.Conv2D(4, 1), name=name)(x), True, ("vector_u",)
    ),
    "Normalization": Kind(lambda x, name: L.Normalization(mean=0.5, variance=2.0, name=name)(x), False, ()),
    "RandomX": Kind(lambda x, name: L.RandomContrast(0.3, name=name)(L.GaussianNoise(0.1)(x)), False, ()),
    "GroupNormalization": Kind(lambda x, name: L.GroupNormalization(2, name=name)(x), False, ()),
    "code book": Kind(lambda x, name: CodeBook(name=name)(x), True, ()),
    "plain variables": Kind(lambda x, name: RawNorm(name=name)(x), True, ("mean",)),
    "a hidden module": Kind(lambda x, name: WithModule(name=name)(x), True, ("inner/parts/mean",)),
    "nested model": Kind(nested, True, ("inner/mean", *(f"bn/{moment}" for moment in MOMENTS))),
    "shared layer": Kind(shared, True, ("mean",)),
    "custom update_state": Kind(lambda x, name: Updating(name=name)(x), True, ("high",)),
    "LSTM with state": Kind(lambda x, name: Sequence(name=name)(x), True, ("state",)),
}


def one_kind(kind: str) -> keras.Model:
    return network(lambda x: KINDS[kind].middle(x, "norm"))


def all_kinds() -> keras.Model:
    """All kinds one after the other, under their names with underscores."""

    def middle(x: Any) -> Any:
        for name, kind in KINDS.items():
            x = kind.middle(x, name.replace(" ", "_"))
        return x

    return network(middle)


def batch(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((6, *SHAPE), np.float32) + 1.0, "label": rng.integers(0, CLASSES, 6)}


def train(model: Any, text: str, steps: int = 2, **options: Any) -> tuple[Any, TrainStep, set[str]]:
    """The selection, the step, and the paths of the variables that moved; all that is frozen must not have."""
    selection = select(model, text, **options)
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD(weight_decay=0.1, decay=filters.group("all")))
    proof, before = FreezeProof.begin(selection), digests(selection.variables.entries)
    for number in range(steps):
        step(selection, batch(number), learning_rate=0.05)
    assert proof.changed(selection) == []
    after = digests(selection.variables.entries)
    return selection, step, {path for path in before if after[path] != before[path]}


@pytest.mark.usefixtures("deterministic_ops")
def test_layers_with_a_state_of_their_own_keep_every_bit_while_the_head_trains_and_move_where_the_filter_says() -> None:
    model = all_kinds()
    selection, step, moved = train(model, "top/.*", steps=1)
    assert moved == {"top/kernel", "top/bias"}
    held = {note.split(" ")[0] for note in step.notes(selection)}
    assert held == {
        name.replace(" ", "_") + ("/inner" if name == "nested model" else "")
        for name, kind in KINDS.items()
        if kind.held
    }
    weights = {entry.path for entry in selection.variables if entry.kind == "weight"}
    selection, _, moved = train(model, "@all", steps=1)
    moving = {f"{name.replace(' ', '_')}/{own}" for name, kind in KINDS.items() for own in kind.moves}
    assert {entry.path for entry in selection.moving} == moving
    assert moving <= moved <= moving | weights


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("deterministic_ops")
def test_each_kind_keeps_every_bit_while_frozen_and_moves_with_its_layer_where_the_filter_says_so(kind: str) -> None:
    model, moves = one_kind(kind), {f"norm/{own}" for own in KINDS[kind].moves}
    selection, step, moved = train(model, "top/.*")
    assert moved == {"top/kernel", "top/bias"}
    held = [note for note in step.notes(selection) if "runs in inference mode" in note]
    assert bool(held) == KINDS[kind].held
    weights = {entry.path for entry in selection.variables if entry.kind == "weight"}
    selection, _, moved = train(model, "@all", statistics="frozen")
    assert {entry.path for entry in selection.trained} == moved == weights
    selection, _, moved = train(model, "@all", steps=1)
    assert moved - weights == {entry.path for entry in selection.moving} == moves


def test_a_state_without_weights_moves_if_the_filter_names_it(deterministic_ops: None) -> None:
    model = one_kind("code book")
    selection, step, moved = train(model, "top/.* norm/.*")
    assert {"norm/codes", "norm/used"} == {entry.path for entry in selection.moving} < moved
    assert step.notes(selection) == []


@pytest.mark.usefixtures("deterministic_ops")
def test_the_layer_of_a_saved_model_holds_its_variables_or_trains_them(saved: str) -> None:
    layer = L.TFSMLayer(saved, call_endpoint="serve", call_training_endpoint="train", name="norm")
    model = network(layer)
    _, step, moved = train(model, "top/.*")
    assert moved == {"top/kernel", "top/bias"}
    selection, step, moved = train(model, "norm/.*", statistics="frozen")
    assert moved == {"norm/kernel"}
    assert "norm (TFSMLayer) runs in inference mode" in step.notes(selection)[0]
    _, _, moved = train(model, "norm/.*", steps=1)
    assert moved == {"norm/kernel", "norm/moving_mean"}


class Loaded(tf.Module):
    """A tf.Module around a loaded SavedModel, or around one of its signatures alone."""

    def __init__(self, folder: str, *, signature: bool) -> None:
        super().__init__()
        net = tf.saved_model.load(folder)
        self.net = net.signatures["train"] if signature else net
        self.keep = lambda: net
        self.head = tf.Variable(tf.random.stateless_normal([4, CLASSES], [3, 4]))

    def __call__(self, x: Any, training: bool = False) -> Any:
        x = tf.tile(x[:, :4, :4], [1, 1, 1, 2])[..., :4]
        if isinstance(self.net, tf.types.experimental.ConcreteFunction):
            (y,) = self.net(x).values()
        else:
            y = self.net.train(x) if training else self.net.serve(x)
        return tf.reduce_mean(y, [1, 2]) @ self.head


@pytest.mark.parametrize("signature", [False, True])
@pytest.mark.usefixtures("deterministic_ops")
def test_what_a_loaded_function_captured_is_listed_and_may_train_or_is_refused(saved: str, signature: bool) -> None:
    model = Loaded(saved, signature=signature)
    mean = "net/moving_mean" if signature else "net/mean"
    assert {entry.path for entry in name_variables(model)} == {"head", "net/kernel", mean}
    with pytest.raises(StepError, match=f"would change 1 frozen variable.*{mean}"):
        train(model, "head")
    if signature:
        _, _, moved = train(model, "net/kernel")
        assert moved == {"net/kernel", mean}


class Always(L.Layer):
    """Counts and shifts whatever its mode is."""

    def build(self, shape: Any) -> None:
        self.shift = self.add_weight(name="shift", shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.shift.assign_add(0.1)
        return x + self.shift


class Constrained(L.Layer):
    """Writes, in training, the kernel of the layer inside it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = L.Dense(4, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.inner.kernel.assign(0.5 * self.inner.kernel)
        return self.inner(x)


class Counting(L.Layer):
    """Counts its steps in training, around a layer that trains and one that draws random numbers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner, self.drop, self.steps = L.Dense(4), L.Dropout(0.5), tf.Variable(0)

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.steps.assign_add(1)
        return self.drop(self.inner(x), training=training)


def test_a_layer_that_writes_the_kernel_of_one_inside_it_is_held_itself() -> None:
    moved = train(network(Constrained(name="norm")), "top/.*", steps=1)[2]
    assert moved == {"top/kernel", "top/bias"}


def test_holding_a_counter_is_refused_where_it_would_stop_the_dropout_of_what_trains() -> None:
    model = network(Counting(name="norm"))
    with pytest.raises(StepError, match=r"norm/steps, which is frozen.*random numbers.*norm/dropout.*`norm/steps`"):
        train(model, "@all", statistics="frozen")
    _, _, moved = train(model, "@all norm/steps", statistics="frozen", steps=1)
    assert "norm/steps" in moved


CLOSED_OVER: dict[str, Any] = {}


class Closure(L.Layer):
    """Scales by a variable that no attribute leads to."""

    def call(self, x: Any) -> Any:
        return x * CLOSED_OVER["scale"]


def test_a_write_that_no_mode_stops_is_refused_before_anything_is_trained() -> None:
    model = network(Always(name="norm"))
    before = digests(name_variables(model).entries)
    with pytest.raises(StepError) as raised:
        train(model, "top/.*")
    for part in ("norm/shift (layer norm, Always)", "naming it (`norm/shift`)", "only if `training` is true"):
        assert part in str(raised.value)
    assert digests(name_variables(model).entries) == before
    _, _, moved = train(model, "top/.* norm/shift")
    assert moved == {"top/kernel", "top/bias", "norm/shift"}


def test_a_variable_that_the_model_does_not_list_is_refused_by_its_name() -> None:
    CLOSED_OVER["scale"] = tf.Variable([1.0, 1.0, 1.0, 1.0], name="hidden_scale")
    with pytest.raises(StepError, match=r"reads hidden_scale \(float32 \[4\]\).*attribute of the model"):
        train(network(Closure(name="norm")), "top/.*")


def test_a_teacher_beside_the_model_is_frozen_once_both_are_selected_from() -> None:
    student, teacher = network(lambda x: x), network(lambda x: x)

    def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Loss:
        values = tf.square(student(batch["image"], training=training) - teacher(batch["image"], training=False))
        return Loss({"mse": (tf.reduce_mean(values, 1), None)})

    step = TrainStep(loss_fn, optimizers.SGD())
    with pytest.raises(StepError, match="uses 4 variable"):
        step(select(student, "@all"), batch(0), learning_rate=0.1)
    both = select({"student": student, "teacher": teacher}, "student/.*")
    assert {entry.path.split("/")[0] for entry in both.frozen} == {"teacher"}
    step(both, batch(0), learning_rate=0.1)


def test_a_skipped_step_changes_nothing_that_the_forward_pass_writes() -> None:
    model = one_kind("SpectralNormalization")
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD(), nonfinite="skip")
    selection, given = select(model, "@all"), batch(0)
    given["image"][0, 0, 0, 0] = np.inf
    before = digests(selection.variables.entries)
    assert step(selection, given, learning_rate=0.1).skipped
    assert digests(selection.variables.entries) == before


def fault(name: str) -> pathlib.Path:
    root = pathlib.Path(__file__).resolve().parents[3]
    folder = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or root / "shared") / "faults" / name
    if not folder.is_dir():
        pytest.skip(f"faults/{name} is neither in $FROSTLINE_SHARED nor in ../shared")
    return folder


def test_the_hidden_state_of_the_fault_case_is_listed_and_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(fault("57_hidden_state")))
    model = importlib.import_module("hidden").net((32, 32, 3), CLASSES)
    assert {"norm/mean", "norm/scale"} < {entry.path for entry in name_variables(model)}
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
    given = {"image": np.ones((4, 32, 32, 3), np.float32), "label": np.zeros(4, np.int64)}
    for text, trains in (("top/.*", False), ("@all", True)):
        selection = select(model, text, statistics="frozen")
        mean, scale = (selection.variables.by_path()[f"norm/{name}"].variable for name in ("mean", "scale"))
        step(selection, given, learning_rate=0.1)
        assert not mean.numpy().any()
        assert bool((scale.numpy() != 1.0).any()) == trains


def test_the_state_that_moves_of_the_fault_case_holds() -> None:
    file = str(fault("19_state_moves") / "sn.keras")
    model = build_model(f"file:{file}", image_shape=(32, 32, 3), outputs=CLASSES).network
    selection = select(model, "@head", statistics="frozen")
    step, proof = TrainStep(losses.supervised_loss(model), optimizers.SGD()), FreezeProof.begin(selection)
    given = {"image": np.ones((4, 32, 32, 3), np.float32), "label": np.zeros(4, np.int64)}
    step(selection, given, learning_rate=0.1)
    assert proof.changed(selection) == []
    assert step.notes(selection)[0].startswith("sn (SpectralNormalization) runs in inference mode")
