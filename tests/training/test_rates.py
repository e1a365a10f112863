"""Learning rates and weight decays by filter: as two optimizers in a loop by hand would train, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import SGD, Adam, AdamW, LossScale, Momentum, TrainStep, group, parse_rates, path, select
from engine.selection.variables import name_variables
from engine.training.losses import Loss
from engine.training.optimizers import Optimizer, OptimizerError, set_paces
from engine.training.rates import RateError, Rates

SHAPES = {"stem/kernel": (3, 4), "stem/bias": (4,), "blocks/0/kernel": (4, 4), "head/kernel": (4, 2), "head/bias": (2,)}
OPTIMIZERS: tuple[Optimizer, ...] = (
    SGD(),
    SGD(weight_decay=0.1),
    Momentum(),
    Momentum(nesterov=True),
    Adam(),
    AdamW(weight_decay=0.1),
)


def build(dtype: Any = tf.float64) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: tf.Variable(rng.normal(0.0, 0.5, shape), dtype=dtype) for name, shape in SHAPES.items()}


def batch_of(step: int, dtype: Any = tf.float64) -> dict[str, Any]:
    rng = np.random.default_rng(100 + step)
    return {"x": tf.constant(rng.normal(size=[6, 3]), dtype), "y": tf.constant(rng.normal(size=[6, 2]), dtype)}


def values_of(model: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    hidden = tf.tanh(tf.matmul(batch["x"], model["stem/kernel"]) + model["stem/bias"])
    hidden = tf.tanh(tf.matmul(hidden, model["blocks/0/kernel"]))
    outputs = tf.matmul(hidden, model["head/kernel"]) + model["head/bias"]
    return tf.reduce_sum(tf.square(outputs - batch["y"]), axis=1)


def loss_of(model: Mapping[str, Any]) -> Any:
    return lambda batch, *, training, seeds: Loss({"error": (values_of(model, batch), None)})


def numbers(model: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: variable.numpy().tobytes() for name, variable in model.items()}


class ByHand:
    """An optimizer of a loop written by hand: TensorFlow's kernels on a list of variables, with one learning rate."""

    def __init__(self, kind: Optimizer, variables: Sequence[Any], decaying: Sequence[Any] = ()) -> None:
        self.kind, self.variables, self.t = kind, variables, 0
        self.decaying = {id(variable) for variable in decaying}
        self.slots = [[tf.Variable(tf.zeros_like(v)) for _ in kind.slots] for v in variables]

    def apply(self, gradients: Sequence[Any], rate: float, weight_decay: float) -> None:
        kind, dtype = self.kind, self.variables[0].dtype
        self.t += 1
        number = lambda value: tf.constant(value, dtype)  # noqa: E731
        for variable, gradient, slots in zip(self.variables, gradients, self.slots, strict=True):
            if id(variable) in self.decaying:
                variable.assign_sub(variable * number(rate * weight_decay))
            handles = [variable.handle, *(slot.handle for slot in slots)]
            if isinstance(kind, Adam):
                tf.raw_ops.ResourceApplyAdam(
                    var=handles[0],
                    m=handles[1],
                    v=handles[2],
                    beta1_power=number(kind.beta1**self.t),
                    beta2_power=number(kind.beta2**self.t),
                    lr=number(rate),
                    beta1=number(kind.beta1),
                    beta2=number(kind.beta2),
                    epsilon=number(kind.epsilon),
                    grad=gradient,
                )
            elif isinstance(kind, Momentum):
                more = {"momentum": number(kind.momentum), "use_nesterov": kind.nesterov}
                tf.raw_ops.ResourceApplyMomentum(
                    var=handles[0], accum=handles[1], lr=number(rate), grad=gradient, **more
                )
            else:
                variable.assign_sub(gradient * number(rate))


# In `make test`, one without and one with slots; the others share their code, and test_optimizers.py holds their rules.
@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(each, marks=[pytest.mark.slow] * (number not in (1, 5))) for number, each in enumerate(OPTIMIZERS)],
    ids=lambda optimizer: type(optimizer).__name__.lower(),
)
def test_rates_and_decays_equal_two_optimizers_in_a_loop_by_hand_to_the_bit(optimizer: Optimizer) -> None:
    ours, theirs = build(), build()
    if optimizer.weight_decay:
        optimizer = dataclasses.replace(optimizer, decays=parse_rates("@head=0.3", name="decays"))
    factors = [1.0, 0.7, 0.3, 0.11, 0.05]
    rates = parse_rates("@head=0.02")
    step, selection = TrainStep(loss_of(ours), optimizer), select(ours, "@all")
    for number, factor in enumerate(factors):
        step(selection, batch_of(number), learning_rate=0.003 * factor, rates=rates.scaled(factor))

    kernels = [theirs[name] for name in SHAPES if name.endswith("kernel")] if optimizer.weight_decay else []
    head, body = ([theirs[n] for n in SHAPES if n.startswith("head") is which] for which in (True, False))
    loops = [(ByHand(optimizer, head, kernels), 0.02, 0.3), (ByHand(optimizer, body, kernels), 0.003, 0.1)]
    gradients_of = tf.function(lambda batch: _gradients(theirs, batch, [*head, *body]))
    for number, factor in enumerate(factors):
        gradients = gradients_of(batch_of(number))
        for (loop, rate, decay), mine in zip(loops, (gradients[: len(head)], gradients[len(head) :]), strict=True):
            loop.apply(mine, rate * factor, decay)
    assert numbers(ours) == numbers(theirs)


def _gradients(model: Mapping[str, Any], batch: Mapping[str, Any], variables: Sequence[Any]) -> Any:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(values_of(model, batch)) / tf.constant(6.0, tf.float64)
    return tape.gradient(loss, variables)


def test_with_everything_else_each_variable_moves_as_if_its_rate_were_the_only_one() -> None:
    """In the first step, because in later ones the gradients depend on all variables."""
    optimizer = AdamW(weight_decay=0.2, clip_norm=0.5, layer_decay=0.5)

    def first_step(rate: float, rates: Rates | None = None, **more: Any) -> tuple[dict[str, bytes], dict[str, bytes]]:
        model = build(tf.float32)
        used = dataclasses.replace(optimizer, **more)
        step = TrainStep(loss_of(model), used, micro_batch_size=4, ema=0.9, loss_scale=LossScale())
        step(select(model, "@all"), batch_of(0, tf.float32), learning_rate=rate, rates=rates)
        return numbers(model), {name: array.tobytes() for name, array in step.arrays()}

    found, kept = first_step(0.01, parse_rates("@head=0.3 blocks/.*=0.02"))
    for rate, names in {0.3: ("head/kernel", "head/bias"), 0.02: ("blocks/0/kernel",)}.items():
        alone, alone_kept = first_step(rate, layer_decay=None)
        for name in names:
            assert found[name] == alone[name]
            assert kept[f"ema/{name}"] == alone_kept[f"ema/{name}"]
    without, _ = first_step(0.01)
    assert {name for name in SHAPES if found[name] == without[name]} == {"stem/kernel", "stem/bias"}


@pytest.mark.parametrize("optimizer", [Momentum(), AdamW(weight_decay=0.1)], ids=["momentum", "adamw"])
def test_rules_that_say_what_holds_anyway_change_no_bit(optimizer: Optimizer) -> None:
    plain, ruled = build(), build()
    same = optimizer
    if optimizer.weight_decay:
        same = dataclasses.replace(optimizer, decays=parse_rates(f"@all={optimizer.weight_decay}", name="decays"))
    one, two = TrainStep(loss_of(plain), optimizer), TrainStep(loss_of(ruled), same)
    for number in range(3):
        one(select(plain, "@all"), batch_of(number), learning_rate=0.01)
        two(select(ruled, "@all"), batch_of(number), learning_rate=0.5, rates=parse_rates("@all=0.01"))
    assert numbers(plain) == numbers(ruled)


def test_other_rates_trace_nothing_and_other_filters_do() -> None:
    model = build()
    step, selection = TrainStep(loss_of(model), SGD()), select(model, "@all")
    for text in ("@head=0.1", "@head=0.2", "@head=0.3"):
        step(selection, batch_of(0), learning_rate=0.01, rates=parse_rates(text).scaled(0.5))
    assert step.traces == 1
    step(selection, batch_of(0), learning_rate=0.01, rates=parse_rates("@bias=0.1"))
    assert step.traces == 2


def test_the_last_rule_that_matches_decides_and_the_rest_takes_the_learning_rate() -> None:
    entries = name_variables(build()).entries
    rates = parse_rates("@head=1e-3 @bias=1e-4 @blocks[-1]=5e-5")
    assert {entry.path: rates.deciding(entry) for entry in entries} == {
        "stem/kernel": None,
        "stem/bias": 1,
        "blocks/0/kernel": 2,
        "head/kernel": 0,
        "head/bias": 1,
    }
    assert (rates.values, str(rates)) == ((1e-3, 1e-4, 5e-5), "@head=0.001 @bias=0.0001 @blocks[-1:]=5e-05")
    in_python = Rates((group("head") & ~group("bias"),), (0.5,))
    assert [e.path for e in entries if in_python.deciding(e) is not None] == ["head/kernel"]


def test_a_regular_expression_may_hold_the_sign_that_ends_it() -> None:
    assert parse_rates("(?=stem)stem/.*=0.1").filters == (path("(?=stem)stem/.*"),)


def test_a_weight_decay_by_filter_concerns_only_what_decays() -> None:
    model = build()
    optimizer = AdamW(weight_decay=0.1, decays=parse_rates("@head=0.3 stem/.*=0", name="decays"))
    paces = set_paces(select(model, "@all"), optimizer, None)
    assert {name: pace.weight_decay if pace.decays else 0.0 for name, pace in zip(SHAPES, paces, strict=True)} == {
        "stem/kernel": 0.0,
        "stem/bias": 0.0,
        "blocks/0/kernel": 0.1,
        "head/kernel": 0.3,
        "head/bias": 0.0,
    }


# --- errors ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty; expected FILTER=RATE, such as @head=1e-3"),
        ("@head", "rule 1 `@head`: expected FILTER=RATE, such as @head=1e-3, with rules separated by white space"),
        ("@head = 1e-3", "rule 1 `@head`: expected FILTER=RATE"),
        ("=1e-3", "rule 1 `=1e-3`: expected FILTER=RATE"),
        ("@head=", "rule 1 `@head=`: expected FILTER=RATE"),
        ("@head=fast", "rule 1 `@head=fast`: expected FILTER=RATE"),
        ("@head=1_0", "rule 1 `@head=1_0`: expected FILTER=RATE"),
        (
            "@bias=1 @head=1e-3,@norm=1e-4",
            "rule 2 `@head=1e-3,@norm=1e-4`: rules are separated by white space, not by commas",
        ),
        ("@haed=1e-3", "rule 1 `@haed=1e-3`: `@haed` is not a group; nearest: @head"),
        ("head/(=1e-3", "rule 1 `head/(=1e-3`: `head/(` is not a valid regular expression"),
        ("!@bias=1e-3", "rule 1 `!@bias=1e-3`: `!` is not valid here, because a rule gives a number"),
        ("@head=-1", "rule 1 `@head=-1`: rate=-1.0: expected a number above 0"),
        ("@head=nan", "rate=nan: expected a number above 0"),
        ("@head=inf", "rate=inf: expected a finite number above 0"),
        ("@bias=0", "expected a learning rate above 0; to keep variables as they are, leave them out of what trains"),
        ("@bias=0", "--train='@all !@bias', without rates"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(RateError) as caught:
        parse_rates(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"rates={text!r}: ")


def test_a_decay_may_be_zero_but_not_negative() -> None:
    assert parse_rates("@head=0", name="decays").values == (0.0,)
    with pytest.raises(RateError, match=r"rule 1 `@head=-1`: decay=-1\.0: expected a number of at least 0"):
        parse_rates("@head=-1", name="decays")
    with pytest.raises(RateError, match=r"expected FILTER=DECAY, such as @head=0\.1"):
        parse_rates("@head", name="decays")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stem/.*=0.1",
            r"rates: rule 1 `stem/\.\*=0.1` matches nothing that trains; expected variables of blocks/0, head",
        ),
        ("@stats=0.1", "rule 1 `@stats=0.1` matches nothing that trains"),
        ("head/bias=0.1 @head=1", r"rule 1 .* has no effect: each of the 1 variables .* a later rule \(`@head=1`\)"),
    ],
)
def test_a_rule_without_effect_is_an_error_of_the_step(text: str, message: str) -> None:
    model = build()
    before = numbers(model)
    step = TrainStep(loss_of(model), SGD())
    with pytest.raises(RateError, match=message):
        step(select(model, "@head @blocks"), batch_of(0), learning_rate=0.1, rates=parse_rates(text))
    assert numbers(model) == before


def test_a_decay_of_what_does_not_decay_is_an_error_that_names_the_flag() -> None:
    model = build()
    step = TrainStep(loss_of(model), SGD(decays=parse_rates("@bias=0.1", name="decays")))
    with pytest.raises(RateError, match=r"matches nothing that trains and decays \(--decay says what decays\)"):
        step(select(model, "@all"), batch_of(0), learning_rate=0.1)
    with pytest.raises(OptimizerError, match=r"decays='@head=0.1': adam has no weight decay; use adamw"):
        Adam(decays=parse_rates("@head=0.1", name="decays"))
