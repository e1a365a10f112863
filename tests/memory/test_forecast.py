"""Forecasts: arithmetic where it is arithmetic, monotone where it must be; plans by brute force."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from engine import TrainStep, select
from engine.host import resident_bytes
from engine.memory import forecast
from engine.memory.forecast import Forecast, Forecaster
from engine.memory.planner import BudgetError, Plan, Planner
from engine.models import build_model
from engine.sizes import format_bytes
from engine.training import losses, optimizers
from engine.training.remat import MODES

BATCH, PROCESS = 12, 1_000_000
ADAMW, MOMENTUM = optimizers.AdamW(), optimizers.Momentum()


@pytest.fixture(scope="module")
def model() -> Any:
    # with a class token, the last of two blocks would be too small for some differences
    return build_model("vit:mini,depth=2,pool=mean", image_shape=(16, 16, 1), outputs=4).network


def batch() -> dict[str, Any]:
    return {"image": np.zeros((2, 16, 16, 1), np.float32), "label": np.zeros(2, np.int64)}


@pytest.fixture(scope="module")
def forecaster(model: Any) -> Callable[..., Forecaster]:
    """(filter, remat, optimizer, ema) -> its Forecaster, traced once."""
    known: dict[Any, Forecaster] = {}

    def find(text: str = "@all", mode: str = "none", optimizer: Any = ADAMW, ema: float | None = None) -> Forecaster:
        key = text, mode, optimizer, ema
        if key not in known:
            step = TrainStep(losses.supervised_loss(model), optimizer, micro_batch_size=BATCH, remat=mode, ema=ema)
            known[key] = Forecaster(step, select(model, text), optimizer, batch())
        return known[key]

    return find


# --- one forecast ---


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        pytest.param(optimizers.SGD(), 0, marks=pytest.mark.slow),
        pytest.param(MOMENTUM, 1, marks=pytest.mark.slow),
        (ADAMW, 2),
        (optimizers.AdamW(decay_toward="start"), 3),
    ],
    ids=str,
)
def test_what_is_arithmetic_is_exact(model: Any, forecaster: Any, optimizer: Any, slots: int) -> None:
    head = 4 * (96 * 4 + 4)
    find = forecaster("@head", optimizer=optimizer, ema=0.9)
    whole, parts = find.at(BATCH, None, process=PROCESS), find.at(BATCH, 3, process=PROCESS)
    for found in (whole, parts):
        assert found.slots == slots * head
        assert found.averages == head
        assert found.weights == sum(4 * variable.shape.num_elements() for variable in model.variables)
        assert found.batches == 3 * BATCH * (16 * 16 * 4 + 8 + 8)  # images, labels, seeds; three of them
        assert found.process == PROCESS
    assert (whole.gradients, whole.accumulators) == (head, 0)
    assert parts.accumulators == head
    assert 0 < parts.gradients < head  # those that are not added up yet


def test_the_total_is_the_sum_of_its_parts_and_the_text_says_them(forecaster: Any) -> None:
    found: Forecast = forecaster().at(BATCH, 3)
    parts = ("slots", "averages", "accumulators", "gradients", "activations", "batches", "graph", "process")
    assert found.total == sum(getattr(found, name) for name in parts)
    assert found.text().startswith(f"{format_bytes(found.total)} = ")
    assert f"activations {format_bytes(found.activations)}" in found.text()
    assert "averages" not in found.text()  # there are none


def test_slots_that_a_step_makes_are_those_of_its_forecast(model: Any, forecaster: Any) -> None:
    step = TrainStep(losses.supervised_loss(model), ADAMW)
    step.slots.fit(select(model, "@blocks[-1:] @head"), ADAMW)
    assert forecaster("@blocks[-1:] @head").at(BATCH, None).slots == step.slots.bytes()


def test_more_examples_take_more_and_a_micro_batch_less(forecaster: Any) -> None:
    find = forecaster()
    totals = [find.at(size, None).total for size in range(1, 40)]
    assert (np.diff(totals) > 0).all()
    split = [find.at(32, size).total for size in range(1, 33)]
    assert (np.diff(split) >= 0).all()
    assert split[0] < find.at(32, None).total


def test_activations_of_a_large_batch_are_linear_in_it(forecaster: Any) -> None:
    find = forecaster()
    sizes = [find.at(size, None).activations for size in (1000, 2000, 3000)]
    assert abs(sizes[2] - 2 * sizes[1] + sizes[0]) <= 2  # each rounded down to a byte


def test_rematerialisation_and_freezing_lower_the_activations(forecaster: Any) -> None:
    by_mode = [forecaster(mode=mode).at(64, 16).activations for mode in MODES]
    assert by_mode[0] > by_mode[1] > by_mode[2]
    by_text = [forecaster(text).at(64, 16).activations for text in ("@all", "@blocks[-1:] @head", "@head")]
    assert by_text[0] > by_text[1] > by_text[2]


def test_the_forecasts_trace_is_the_steps(model: Any) -> None:
    step = TrainStep(losses.supervised_loss(model), ADAMW)
    Forecaster(step, select(model, "@head"), ADAMW, batch())
    assert step.micro_batch(select(model, "@head"), batch()) is step.micro_batch(select(model, "head/.*"), batch())


def test_a_process_holds_what_was_just_written() -> None:
    before = resident_bytes()
    block = np.ones(64 * 1024 * 1024, np.uint8)
    assert resident_bytes() - before > 0.9 * block.nbytes


# --- plans ---


@pytest.fixture(scope="module")
def plan(model: Any, forecaster: Any) -> Callable[..., Plan]:
    """(budget, filters) -> the plan; forecasts are shared by all."""

    def make(budget: int, texts: Sequence[str] = ("@all",), modes: Any = MODES) -> Plan:
        return planner(model, forecaster, budget, texts, modes).plan_micro_batches(
            [(select(model, t), ADAMW) for t in texts]
        )

    return make


def planner(model: Any, forecaster: Any, budget: int, texts: Sequence[str], modes: Any = MODES) -> Planner:
    def never(micro_batch_size: int | None, mode: Any) -> TrainStep:
        raise AssertionError("everything was traced before")

    known = {(select(model, text), ADAMW, mode, False): forecaster(text, mode) for text in texts for mode in MODES}
    return Planner(never, batch(), BATCH, budget, lambda: 0, modes, known)


def test_on_a_gpu_the_budget_is_for_its_memory_alone(model: Any, forecaster: Any) -> None:
    find = forecaster("@all")
    whole = find.at(BATCH, None, process=10**12)
    parts = find.at(BATCH, 4, process=10**12)
    assert parts.device == (
        parts.weights + parts.slots + parts.accumulators + parts.gradients + parts.activations + parts.batches // 3
    )
    assert (whole.on("gpu"), whole.on("cpu")) == (whole.device, whole.total)
    assert parts.device < whole.device < 10**12
    made = planner(model, forecaster, whole.device - 1, ["@all"])
    made.kind, made.process = "gpu", lambda: 10**12
    found = made.plan_micro_batches([(select(model, "@all"), ADAMW)])
    assert found.micro_batch_size is not None
    assert found.forecasts[0].device < whole.device


def brute_force(find: Callable[[str, int | None], int], budget: int, modes: Sequence[str]) -> tuple[str, int | None]:
    """What ``micro_batches`` promises, by trying everything: (mode, micro-batch or None for one piece)."""
    for sizes in (range(4, BATCH), range(1, 4)):
        for mode in modes:
            if find(mode, None) <= budget:
                return mode, None
            if fitting := [size for size in sizes if find(mode, size) <= budget]:
                count = -(-BATCH // max(fitting))
                return mode, -(-BATCH // count)  # as many parts, of equal size
    raise LookupError


@pytest.mark.slow
def test_the_plan_is_what_trying_everything_finds(forecaster: Any, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # of so small a model the graph takes more than its activations, and recomputing would never pay
    monkeypatch.setattr(forecast, "_BYTES_PER_OPERATION", 10)

    @functools.cache
    def find(mode: str, size: int | None) -> int:
        return forecaster("@all", mode).at(BATCH, size).total

    everything = sorted({find(mode, size) for mode in MODES for size in (None, *range(1, BATCH))})
    chosen = set()
    for budget, modes in itertools.product(everything, (MODES, ("none", "blocks"))):
        if budget < min(find(mode, 1) for mode in modes):
            continue
        found = plan(budget, modes=modes)
        assert (found.remat, found.micro_batch_size) == brute_force(find, budget, modes), budget
        assert found.total <= budget
        chosen.add(found.remat)
        chosen.add(found.micro_batch_size)
    assert {None, "none", "elementwise", "blocks"} <= chosen, "the budgets above do not try what they should"


def test_nothing_is_recomputed_or_split_where_it_fits(forecaster: Any, plan: Any) -> None:
    enough = forecaster().at(BATCH, None).total
    found = plan(enough)
    assert (found.micro_batch_size, found.remat) == (None, "none")
    assert found.reasons == (f"one piece with remat=none: {format_bytes(enough)} of {format_bytes(enough)}",)
    assert plan(enough - 1).micro_batch_size is not None


def test_modes_that_may_not_be_used_are_not(forecaster: Any, plan: Any) -> None:
    tight = forecaster().at(BATCH, 1).total
    found = plan(tight, modes=("none",))
    assert (found.micro_batch_size, found.remat) == (1, "none")


def test_a_plan_for_several_selections_obeys_the_largest(forecaster: Any, plan: Any) -> None:
    texts = ("@head", "@all", "@blocks[-1:] @head")
    budget = forecaster("@all").at(BATCH, 6).total
    found = plan(budget, texts)
    assert (found.micro_batch_size, found.remat) == (plan(budget).micro_batch_size, plan(budget).remat)
    assert plan(budget, ("@head",)).micro_batch_size is None
    assert found.total == found.forecasts[1].total
    assert [f.slots for f in found.forecasts] == [forecaster(text).at(BATCH, None).slots for text in texts]


def test_an_impossible_budget_says_the_smallest_that_would_do(forecaster: Any, plan: Any) -> None:
    least, mode = min((forecaster(mode=mode).at(BATCH, 1).total, mode) for mode in MODES)
    with pytest.raises(BudgetError) as caught:
        plan(least - 1)
    assert (
        f"the smallest budget that would suffice is {format_bytes(least)} (micro-batches of 1 example, remat={mode})"
        in str(caught.value)
    )
    assert plan(least).total <= least


def test_the_most_blocks_that_fit_are_trained(model: Any, forecaster: Any) -> None:
    texts = {2: "@blocks[-2:] @head", 1: "@blocks[-1:] @head", 0: "@head"}
    choices = [(blocks, [(select(model, text), ADAMW)]) for blocks, text in texts.items()]
    totals = {blocks: forecaster(text).at(BATCH, 6).total for blocks, text in texts.items()}
    for budget in sorted(totals.values()):
        found, place = planner(model, forecaster, budget, list(texts.values())).plan_blocks(choices, 6, "none")
        most = max(blocks for blocks, total in totals.items() if total <= budget)
        assert (found.blocks, choices[place][0], found.total) == (most, most, totals[most])
        assert (most == 2) == (len(found.reasons) == 1)  # otherwise the reason says what one more would take
    with pytest.raises(BudgetError, match=r"training 0 block\(s\) takes .*; --micro_batches or --remat=blocks"):
        planner(model, forecaster, totals[0] - 1, list(texts.values())).plan_blocks(choices, 6, "none")
