"""RMSProp, Adagrad, Adadelta, Ftrl and the two placements of Adam's epsilon, against TensorFlow's own optimizers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.keras.optimizer_v2 import adadelta, adagrad, adam, ftrl, rmsprop

from engine import TrainStep, select
from engine.selection.variables import name_variables
from engine.training.losses import Loss
from engine.training.optimizer_state import Slots
from engine.training.optimizers import (
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Ftrl,
    Momentum,
    Optimizer,
    OptimizerError,
    RMSProp,
    build_optimizer,
)
from engine.training.precision import LossScale

v1 = tf.compat.v1
STEPS, SHAPE = 12, (3, 5)
RATE = 0.05


def gradients(dtype: Any) -> list[np.ndarray]:
    """Of very different sizes, with zeros among them."""
    rng = np.random.default_rng(5)
    found = rng.standard_normal((STEPS, *SHAPE)) * 10.0 ** rng.integers(-3, 2, (STEPS, *SHAPE))
    found[:, 0, 0] = 0
    found[3:6, 1] = 0
    return list(found.astype(dtype))


def start(dtype: Any) -> np.ndarray:
    return np.random.default_rng(6).standard_normal(SHAPE).astype(dtype)


class Trained:
    """A variable that is trained by this engine with given gradients: the gradient of sum(g * v) is g to the bit."""

    def __init__(self, optimizer: Optimizer, dtype: Any = np.float32, **settings: Any) -> None:
        self.model = {"w": tf.Variable(start(dtype)), "frozen": tf.Variable(start(dtype))}
        self.variables = name_variables(self.model)

        def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
            return Loss({"sum": (tf.reduce_sum(batch["g"] * self.model["w"], axis=[1, 2]), None)})

        self.step = TrainStep(loss_fn, optimizer, **settings)
        self.selection = select(self.variables, "w")

    def train(self, given: list[np.ndarray], rate: float = RATE) -> np.ndarray:
        for gradient in given:
            self.step(self.selection, {"g": gradient[None]}, learning_rate=rate)
        return self.model["w"].numpy()


def session(make: Any, dtype: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same in a Session of TensorFlow 1: the variable and its slots."""
    with tf.Graph().as_default(), v1.Session() as running:
        variable = v1.get_variable("w", initializer=start(dtype))
        fed = v1.placeholder(dtype, SHAPE)
        optimizer = make(np.float64 if dtype == np.float64 else float)
        train = optimizer.apply_gradients([(fed, variable)])
        running.run(v1.global_variables_initializer())
        for gradient in gradients(dtype):
            running.run(train, {fed: gradient})
        slots = {name: running.run(optimizer.get_slot(variable, name)) for name in optimizer.get_slot_names()}
        return running.run(variable), slots


# text of the optimizer -> the optimizer of tf.compat.v1.train, made with numbers of the type n
V1 = {
    "momentum,nesterov,momentum=0.8": lambda n: v1.train.MomentumOptimizer(n(RATE), n(0.8), use_nesterov=True),
    "adam,beta2=0.99,epsilon=0.01": lambda n: v1.train.AdamOptimizer(n(RATE), n(0.9), n(0.99), n(0.01)),
    "rmsprop": lambda n: v1.train.RMSPropOptimizer(n(RATE), n(0.9), n(0.0), n(1e-10)),
    "rmsprop,rho=0.8,momentum=0.9,epsilon=1.0": lambda n: v1.train.RMSPropOptimizer(n(RATE), n(0.8), n(0.9), n(1.0)),
    "rmsprop,centered": lambda n: v1.train.RMSPropOptimizer(n(RATE), n(0.9), n(0.0), n(1e-10), centered=True),
    "rmsprop,centered,momentum=0.5,epsilon=1e-3": lambda n: v1.train.RMSPropOptimizer(
        n(RATE), n(0.9), n(0.5), n(1e-3), centered=True
    ),
    "adagrad": lambda n: v1.train.AdagradOptimizer(n(RATE)),
    "adagrad,initial_accumulator=0.5": lambda n: v1.train.AdagradOptimizer(n(RATE), 0.5),
    "adadelta": lambda n: v1.train.AdadeltaOptimizer(n(RATE), n(0.95), n(1e-8)),
    "adadelta,rho=0.5,epsilon=1e-6": lambda n: v1.train.AdadeltaOptimizer(n(RATE), n(0.5), n(1e-6)),
    "ftrl": lambda n: v1.train.FtrlOptimizer(n(RATE), n(-0.5)),
    "ftrl,l1=0.01,l2=0.1,learning_rate_power=-0.3,initial_accumulator=0.5": lambda n: v1.train.FtrlOptimizer(
        n(RATE), n(-0.3), 0.5, n(0.01), n(0.1)
    ),
    "ftrl,l2_shrinkage=0.2,l2=0.1": lambda n: v1.train.FtrlOptimizer(
        n(RATE), n(-0.5), l2_regularization_strength=n(0.1), l2_shrinkage_regularization_strength=n(0.2)
    ),
    "ftrl,beta=0.3,l2=0.1": lambda n: v1.train.FtrlOptimizer(
        n(RATE), n(-0.5), l2_regularization_strength=n(0.1), beta=n(0.3)
    ),
}


@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("spec", list(V1))
def test_twelve_steps_have_the_bits_of_tensorflow_1(spec: str, dtype: Any) -> None:
    theirs, slots = session(V1[spec], dtype)
    ours = Trained(build_optimizer(spec), dtype)
    # TensorFlow 1 multiplies the powers of Adam's betas up in float32; here each is rounded once, from float64. A
    # difference of up to t roundings in a factor of the step of 0.05 stays below 12 * 6e-8 * 12 * 0.05 = 4e-7.
    bound = {np.float32: 4e-7, np.float64: 1e-15}[dtype] if spec.startswith("adam,") else 0
    np.testing.assert_allclose(ours.train(gradients(dtype)), theirs, rtol=0, atol=bound)
    kept = {name: slot.numpy() for name, slot in ours.step.slots.values["w"].items()}
    if spec.startswith("ftrl"):  # its accumulator is called accum in TensorFlow 1
        kept["accum"] = kept.pop("accumulator")
    assert kept.keys() == slots.keys()
    for name, value in slots.items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)


# text of the optimizer -> the optimizer of OptimizerV2
V2 = {
    "adam,epsilon=1e-7": lambda: adam.Adam(RATE),
    "rmsprop,epsilon=1e-7,epsilon_placement=outside,initial_accumulator=0": lambda: rmsprop.RMSProp(RATE),
    "rmsprop,centered,epsilon=1e-3,epsilon_placement=outside,initial_accumulator=0": lambda: rmsprop.RMSProp(
        RATE, centered=True, epsilon=1e-3
    ),
    "rmsprop,momentum=0.9,epsilon=1e-7,initial_accumulator=0": lambda: rmsprop.RMSProp(RATE, momentum=0.9),
    "adagrad,epsilon=1e-7": lambda: adagrad.Adagrad(RATE),
    "adadelta,epsilon=1e-7": lambda: adadelta.Adadelta(RATE),
    "ftrl,beta=0.3,l1=0.01": lambda: ftrl.Ftrl(RATE, beta=0.3, l1_regularization_strength=0.01),
}


@pytest.mark.parametrize("spec", list(V2))
def test_twelve_steps_have_the_bits_of_optimizer_v2(spec: str) -> None:
    optimizer, variable = V2[spec](), tf.Variable(start(np.float32))

    @tf.function(autograph=False)
    def train(gradient: Any) -> None:
        optimizer.apply_gradients([(gradient, variable)])

    for gradient in gradients(np.float32):
        train(tf.constant(gradient))
    ours = Trained(build_optimizer(spec)).train(gradients(np.float32))
    # Adam's powers are float32 there; the others are equal to the bit.
    np.testing.assert_allclose(ours, variable.numpy(), rtol=0, atol=2e-6 if spec.startswith("adam,") else 0)


def test_the_corrected_epsilon_of_adam_is_that_of_algorithm_1_and_differs_from_the_default() -> None:
    given = gradients(np.float64)
    m, v, value = np.zeros(SHAPE), np.zeros(SHAPE), start(np.float64)
    for t, g in enumerate(given, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        value = value - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 0.01)
    ours = Trained(Adam(epsilon=0.01, epsilon_placement="corrected"), np.float64).train(given)
    np.testing.assert_allclose(ours, value, rtol=0, atol=1e-13)
    other = Trained(Adam(epsilon=0.01), np.float64).train(given)
    assert np.abs(other - value).max() > 1e-2


# --- the machinery around the update ---

KINDS = ("rmsprop,centered", "ftrl", "rmsprop,epsilon_placement=outside")
KINDS += tuple(
    pytest.param(spec, marks=pytest.mark.slow)
    for spec in ("adam,epsilon_placement=corrected", "rmsprop,momentum=0.9", "adagrad", "adadelta")
)


@pytest.mark.parametrize("spec", KINDS)
def test_a_resume_from_the_state_goes_on_to_the_bit(spec: str) -> None:
    given = gradients(np.float32)
    whole = Trained(build_optimizer(spec)).train(given)
    half = Trained(build_optimizer(spec))
    half.train(given[:5])
    arrays = dict(half.step.arrays())
    assert set(arrays) == {f"optimizer/w/{slot}" for slot in (*half.step.optimizer.slots, "t")}
    assert arrays["optimizer/w/t"] == 5
    resumed = Trained(build_optimizer(spec))
    resumed.model["w"].assign(half.model["w"])
    resumed.step.restore(resumed.variables, half.step.state(), arrays)
    np.testing.assert_array_equal(resumed.train(given[5:]), whole)


@pytest.mark.parametrize("spec", KINDS)
def test_a_step_that_is_not_finite_changes_neither_variable_nor_slots(spec: str) -> None:
    given = gradients(np.float32)
    trained = Trained(build_optimizer(spec), loss_scale=LossScale(scale=4.0))
    trained.train(given[:3])
    before = {"w": trained.model["w"].numpy()} | dict(trained.step.arrays())
    bad = given[3].copy()
    bad[0, 0] = np.inf
    trained.train([bad])
    after = {"w": trained.model["w"].numpy()} | dict(trained.step.arrays())
    assert trained.step.skipped == 1
    for name, value in before.items():
        assert value.tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize(
    "settings", [{"micro_batch_size": 2, "ema": 0.9}, pytest.param({"jit_compile": "on"}, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("spec", KINDS)
def test_micro_batches_with_averages_and_compiled_steps_compute_the_same_clipped_step(
    spec: str, settings: dict[str, Any]
) -> None:
    given = [np.stack(gradients(np.float64)[n : n + 3]) for n in (0, 3, 6)]

    def train(**settings: Any) -> np.ndarray:
        trained = Trained(build_optimizer(spec, clip_norm=2.0), np.float64, **settings)
        for batch in given:
            trained.step(trained.selection, {"g": batch}, learning_rate=RATE)
        assert trained.model["frozen"].numpy().tobytes() == start(np.float64).tobytes()
        return trained.model["w"].numpy()

    whole = train()
    np.testing.assert_allclose(train(**settings), whole, rtol=0, atol=1e-12)
    assert np.abs(whole - start(np.float64)).max() > 1e-6


def test_new_slots_start_from_the_values_of_tensorflow_1_and_of_the_options() -> None:
    variables = name_variables({"w": tf.Variable(start(np.float32))})
    for spec, first in (
        ("rmsprop,centered", {"rms": 1.0, "mg": 0.0, "momentum": 0.0}),
        ("rmsprop,initial_accumulator=0,epsilon_placement=outside", {"rms": 0.0}),
        ("adagrad", {"accumulator": 0.1}),
        ("ftrl,initial_accumulator=0.5", {"accumulator": 0.5, "linear": 0.0}),
        ("adadelta", {"accum": 0.0, "accum_update": 0.0}),
    ):
        slots = Slots()
        slots.fit(select(variables, "@all"), build_optimizer(spec))
        assert {n: np.unique(s.numpy()).tolist() for n, s in slots.values["w"].items()} == {
            name: [np.float32(value)] for name, value in first.items()
        }
        assert slots.bytes() == len(first) * 4 * math.prod(SHAPE)


def test_decoupled_decay_comes_before_the_update_and_ftrl_refuses_it() -> None:
    given = gradients(np.float64)[:1]
    for spec in ("rmsprop", "adagrad", "adadelta"):
        bare = Trained(build_optimizer(spec), np.float64).train(given)
        decayed = Trained(build_optimizer(spec, weight_decay=0.1), np.float64).train(given)
        np.testing.assert_allclose(decayed, bare - RATE * 0.1 * start(np.float64), rtol=0, atol=1e-15)
    with pytest.raises(OptimizerError, match=r"weight_decay=0\.1: ftrl has no decoupled weight decay.*use l2"):
        Ftrl(weight_decay=0.1)


def test_ftrl_refuses_a_learning_rate_of_zero_before_anything_moves() -> None:
    trained = Trained(Ftrl())
    with pytest.raises(OptimizerError, match="learning_rate=0: ftrl divides by it; expected a number above 0"):
        trained.train(gradients(np.float32)[:1], rate=0.0)
    np.testing.assert_array_equal(trained.model["w"].numpy(), start(np.float32))


def test_rows_that_a_step_does_not_look_up_are_told_where_tensorflow_1_would_leave_them() -> None:
    table = tf.Variable(np.ones((4, 2), np.float32))

    def loss_fn(batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        return Loss({"sum": (tf.reduce_sum(tf.gather(table, batch["row"]), axis=1), None)})

    selection = select({"table": table}, "@all")
    for spec, moved in (("rmsprop,momentum=0.9", True), ("ftrl", True), ("momentum", True), ("adagrad", False)):
        step = TrainStep(loss_fn, build_optimizer(spec))
        for row in (0, 1):
            step(selection, {"row": np.array([row])}, learning_rate=0.1)
        (note,) = step.notes(selection) or [""]
        assert (f"{spec.split(',')[0]} also updates the rows that a step does not look up" in note) == moved
        assert ("(table); the optimizers of TensorFlow 1 leave such rows" in note) == moved


# --- texts and errors ---


def test_a_text_holds_the_hyperparameters() -> None:
    found = build_optimizer("rmsprop,momentum=0.9,epsilon=1.0,centered")
    assert found == RMSProp(momentum=0.9, epsilon=1.0, centered=True)
    assert build_optimizer("rmsprop,centered=False") == RMSProp()
    assert build_optimizer("momentum,nesterov=True", momentum=0.5) == Momentum(momentum=0.5, nesterov=True)
    assert build_optimizer("adagrad") == Adagrad()
    assert build_optimizer("adadelta,rho=0.9") == Adadelta(rho=0.9)
    assert build_optimizer("ftrl,l1=0.1,learning_rate_power=-0.3") == Ftrl(l1=0.1, learning_rate_power=-0.3)
    assert build_optimizer("adamw,weight_decay=0.1,layer_decay=0.5,clip_norm=1") == AdamW(
        weight_decay=0.1, layer_decay=0.5, clip_norm=1.0
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("RMSProp", "optimizer='RMSProp': expected one of sgd, momentum, adam, adamw, rmsprop, adagrad, adadelta, ftrl; nearest: rmsprop"),
        ("rmsprop,", "``: expected a hyperparameter of rmsprop: weight_decay, decay_toward, layer_decay, clip_norm, rho"),
        ("rmsprop,momentun=0.9", "`momentun=0.9`: expected a hyperparameter of rmsprop"),
        ("rmsprop,momentun=0.9", "; nearest: momentum"),
        ("rmsprop,decay=0.9", "; TensorFlow's decay is rho here"),
        ("ftrl,l1_regularization_strength=1", "; TensorFlow's l1_regularization_strength is l1 here"),
        ("adagrad,learning_rate=0.1", "; the learning rate is given separately"),
        ("rmsprop,momentum", "`momentum`: expected a number after `=`"),
        ("rmsprop,momentum=", "`momentum=`: expected a number after `=`"),
        ("rmsprop,momentum=fast", "`momentum=fast`: expected a number after `=`"),
        ("rmsprop,centered=2", "`centered=2`: expected the word alone, or true or false"),
        ("rmsprop,rho=0.9,rho=0.8", "`rho=0.8`: rho is given twice; give it once"),
        ("rmsprop,epsilon_placement", "`epsilon_placement`: expected a word after `=`"),
        ("rmsprop,epsilon_placement=insde", "epsilon_placement='insde': expected inside or outside; nearest: inside"),
        ("adam,epsilon_placement=outside", "epsilon_placement='outside': expected uncorrected or corrected"),
        ("rmsprop,epsilon_placement=outside,momentum=0.9", "epsilon_placement=outside, momentum=0.9: with momentum"),
        ("rmsprop,rho=1", "rho=1: expected a number of at least 0 and below 1"),
        ("rmsprop,momentum=1", "momentum=1: expected a number of at least 0 and below 1"),
        ("rmsprop,epsilon=0", "epsilon=0: expected a number above 0"),
        ("rmsprop,epsilon=nan", "epsilon=nan: expected a number above 0"),
        ("rmsprop,initial_accumulator=-1", "initial_accumulator=-1: expected a number of at least 0"),
        ("adagrad,initial_accumulator=0", "initial_accumulator=0: expected a number above 0"),
        ("adagrad,epsilon=-1", "epsilon=-1: expected a number of at least 0"),
        ("adadelta,rho=1", "rho=1: expected"),
        ("adadelta,epsilon=0", "epsilon=0: expected a number above 0"),
        ("ftrl,learning_rate_power=0.5", "learning_rate_power=0.5: expected a number at most 0"),
        ("ftrl,learning_rate_power=-inf", "learning_rate_power=-inf: expected a number at most 0"),
        ("ftrl,l1=-1", "l1=-1: expected a number of at least 0"),
        ("ftrl,l2=inf", "l2=inf: expected a number of at least 0"),
        ("ftrl,beta=-1", "beta=-1: expected"),
        ("sgd,momentum=0.9", "`momentum=0.9`: expected a hyperparameter of sgd: weight_decay, decay_toward, layer_decay, clip_norm"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_valid_is_refused_with_the_rule(spec: str, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        build_optimizer(spec)
    assert message in str(caught.value)


def test_a_hyperparameter_in_the_text_and_in_an_argument_is_refused() -> None:
    with pytest.raises(OptimizerError, match="momentum is given twice"):
        build_optimizer("rmsprop,momentum=0.9", momentum=0.5)
