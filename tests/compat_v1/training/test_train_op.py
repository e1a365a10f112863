"""What tf.compat.v1.train lacks - clipping, weight decay, layer decay - and each of its optimizers, as in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.training.freezing import METHODS, Freezing
from compat_v1.training.session_line import SessionLine
from compat_v1.training.session_loop import SessionLoop
from engine import TrainStep, parse_filter, parse_rates, select
from engine.selection.variables import name_variables
from engine.training import optimizers
from engine.training.losses import Loss
from engine.training.precision import LossScale

v1 = tf.compat.v1
STEPS, BOUND = 8, 1e-10  # the bound of contract E3 in float64
SHAPES = {"stem/kernel": (5, 4), "stem/bias": (4,), "body/kernel": (4, 4), "head/kernel": (4, 3), "head/bias": (3,)}
TRAINED = "@all !body/.*"  # the stem trains below a frozen body

DECAYS = "clip_norm=0.2,weight_decay=0.1,layer_decay=0.7"
SPECS = {
    "sgd": 0.1,
    "momentum,nesterov": 0.05,
    "adam": 0.01,
    "rmsprop": 0.01,
    "rmsprop,momentum=0.9,epsilon=1.0": 0.01,
    "rmsprop,centered,epsilon=0.01": 0.01,
    "adagrad,initial_accumulator=0.2": 0.05,
    "adadelta,epsilon=1e-4": 0.5,
    "ftrl,l1=1e-3,l2=0.01,l2_shrinkage=1e-3,beta=0.1": 0.1,
    f"sgd,{DECAYS}": 0.1,
    f"adamw,{DECAYS}": 0.01,
    f"rmsprop,centered,epsilon=0.01,{DECAYS}": 0.01,
    "ftrl,clip_norm=0.2,layer_decay=0.7": 0.1,
}
START = {path: np.random.default_rng(n).standard_normal(shape) * 0.5 for n, (path, shape) in enumerate(SHAPES.items())}


def batches(dtype: Any = np.float64) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        {
            "image": rng.standard_normal((10, 5)).astype(dtype),
            "label": rng.standard_normal((10, 3)).astype(dtype),
            "seeds": np.zeros((10, 2), np.int32),
        }
        for _ in range(STEPS)
    ]


def loss_of(read: Any) -> Any:
    """The same arithmetic for both sides; ``read`` returns the variable of a path."""

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        w = {path: read(path) for path in SHAPES}
        x = tf.tanh(tf.matmul(batch["image"], w["stem/kernel"]) + w["stem/bias"])
        y = tf.matmul(tf.tanh(tf.matmul(x, w["body/kernel"])), w["head/kernel"]) + w["head/bias"]
        return Loss({"mse": (tf.reduce_sum(tf.square(y - batch["label"]), -1), None)})

    return loss_fn


class Sides:
    """One job for the engine and for a Session."""

    def __init__(self, spec: str | optimizers.Optimizer, dtype: Any = np.float64, **settings: Any) -> None:
        self.optimizer = optimizers.build_optimizer(spec) if isinstance(spec, str) else spec
        self.rate, self.dtype = SPECS.get(str(spec), 0.05), dtype
        self.model = {path: tf.Variable(value.astype(dtype)) for path, value in START.items()}
        self.selection = select(name_variables(self.model), TRAINED)
        self.settings = settings

    def engine(self) -> dict[str, np.ndarray]:
        step = TrainStep(loss_of(self.model.__getitem__), self.optimizer, **self.settings)
        for batch in batches(self.dtype):
            step(self.selection, batch, learning_rate=self.rate)
        return {path: variable.numpy() for path, variable in self.model.items()}

    def loop(self, method: str) -> SessionLoop:
        def read(path: str) -> Any:
            return v1.get_variable(path, SHAPES[path], tf.as_dtype(self.dtype))

        freezing = Freezing(method, self.selection)
        loop = SessionLoop(loss_of(read), freezing, self.optimizer, batches(self.dtype)[0], **self.settings)
        loop.assign({path: value.astype(self.dtype) for path, value in START.items()})
        return loop

    def session(self, method: str) -> dict[str, np.ndarray]:
        with self.loop(method) as loop:
            for batch in batches(self.dtype):
                loop.step(batch, learning_rate=self.rate)
            assert loop.steps == STEPS
            return dict(loop.values())


def same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    one, other = (np.concatenate([side[path].ravel() for path in SHAPES]) for side in (ours, theirs))
    assert np.linalg.norm(one - other) < BOUND * np.linalg.norm(other)
    assert ours["body/kernel"].tobytes() == theirs["body/kernel"].tobytes() == START["body/kernel"].tobytes()
    assert np.abs(theirs["stem/kernel"] - START["stem/kernel"]).max() > 1e-3


# Between them, unmarked, they have every part of the train op; the other rules are one line each.
QUICK = ("adadelta,epsilon=1e-4", f"adamw,{DECAYS}", "ftrl,clip_norm=0.2,layer_decay=0.7")


@pytest.mark.parametrize(
    ("number", "spec"),
    [pytest.param(number, spec, marks=[] if spec in QUICK else pytest.mark.slow) for number, spec in enumerate(SPECS)],
)
def test_a_session_trains_as_the_engine_does(number: int, spec: str) -> None:
    whole, method = Sides(spec).engine(), METHODS[number % 3]
    same(Sides(spec).session(method), whole)
    same(Sides(spec, micro_batch_size=4).session(METHODS[(number + 1) % 3]), whole)


def test_the_three_methods_have_the_same_bits_with_clipping_and_decays() -> None:
    results = [Sides(f"adamw,{DECAYS}").session(method) for method in METHODS]
    for path in SHAPES:
        assert results[0][path].tobytes() == results[1][path].tobytes() == results[2][path].tobytes()


def test_decays_by_filter_are_those_of_the_engine() -> None:
    decays = parse_rates("head/.*=0.5 stem/bias=0.2", name="decays")
    rule = optimizers.Momentum(decays=decays, decay=parse_filter("@all"))
    same(Sides(rule).session("trainable"), Sides(rule).engine())
    bare = Sides(optimizers.Momentum()).engine()
    assert np.abs(bare["stem/bias"] - Sides(rule).engine()["stem/bias"]).max() > 1e-3


def test_in_float32_the_first_step_is_the_engines() -> None:
    spec = f"momentum,{DECAYS}"
    ours, theirs = Sides(spec, np.float32).session("stop_gradient"), Sides(spec, np.float32).engine()
    for path in SHAPES:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=0, atol=2e-6)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_step_that_is_not_finite_does_not_decay_either(scaled: bool) -> None:
    sides = Sides(f"adamw,{DECAYS}", loss_scale=LossScale() if scaled else None)
    bad = batches()[0]
    bad["image"][3] = np.inf
    with sides.loop("var_list") as loop:
        if scaled:
            assert loop.step(bad, learning_rate=0.1).skipped
        else:
            with pytest.raises(Exception, match="not applied"):
                loop.step(bad, learning_rate=0.1)
        for path, value in loop.values():
            assert value.tobytes() == START[path].tobytes(), path


def test_above_a_frost_line_clipping_and_decays_are_the_same() -> None:
    def train(*, cut: bool) -> dict[str, np.ndarray]:
        sides = Sides(f"adamw,{DECAYS}")
        sides.selection = select(name_variables(sides.model), "head/.*")
        with sides.loop("trainable") as loop:
            line = loop.cut() if cut else None
            assert cut == isinstance(line, SessionLine)
            for batch in batches():
                given = batch if line is None else line.replace_images(batch)
                loop.step(given, learning_rate=0.01)
            return dict(loop.values())

    whole, above = train(cut=False), train(cut=True)
    for path in SHAPES:
        np.testing.assert_allclose(above[path], whole[path], rtol=0, atol=1e-12)
    assert np.abs(whole["head/kernel"] - START["head/kernel"]).max() > 1e-3


def test_with_layer_decay_every_slot_is_kept_counted_and_restored(tmp_path: Any) -> None:
    sides = Sides(f"adamw,{DECAYS}")
    given = batches()
    with sides.loop("trainable") as loop:
        trained = [path for path in SHAPES if not path.startswith("body")]
        assert sorted(loop.built.slots) == sorted(f"{path}/{end}" for path in trained for end in ("Adam", "Adam_1"))
        assert loop.built.slot_bytes == 2 * 8 * sum(int(np.prod(SHAPES[path])) for path in trained)
        for batch in given[:5]:
            loop.step(batch, learning_rate=0.01)
        loop.save(tmp_path)
        for batch in given[5:]:
            loop.step(batch, learning_rate=0.01)
        wanted = dict(loop.values())
    with sides.loop("trainable") as loop:
        assert loop.restore(tmp_path) == 5
        for batch in given[5:]:
            loop.step(batch, learning_rate=0.01)
        for path, value in loop.values():
            assert value.tobytes() == wanted[path].tobytes(), path
