"""Phases: what a phase may say, and which one applies as a pure function of saved state."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.selection.filters import FilterError
from engine.training.phases import (
    Evaluation,
    Phase,
    PhaseError,
    Position,
    best_evaluation,
    expand_groups,
    find_plateau,
    locate,
    parse,
    score,
)
from engine.training.schedules import ScheduleError


def evaluation(step: int, loss: float, accuracy: float | None = None) -> Evaluation:
    return Evaluation(step, "p", loss, accuracy, None)


def losses(*values: float, every: int = 10, start: int = 10) -> list[Evaluation]:
    return [evaluation(start + every * n, value) for n, value in enumerate(values)]


def steps(name: str, count: int) -> Phase:
    return Phase(name=name, train="head/.*", steps=count)


def until(name: str = "p", **more: Any) -> Phase:
    return Phase(name=name, train="head/.*", until="plateau", **({"max_steps": 100} | more))


# --- parse ---


def test_a_phase_with_every_key_is_read() -> None:
    text = (
        'name=body train="head/.* @blocks[-2:] !@norm" until=plateau patience=3 min_delta=0.01 max_steps=500 '
        'learning_rate=1e-4 schedule=cosine,warmup=5 rates="@head=1e-3 @norm=0.1" weight_decay=0.05 decays=@head=0 '
        "layer_decay=0.75 clip_norm=1"
    )
    assert parse(text) == Phase(
        name="body",
        train="head/.* @blocks[-2:] !@norm",
        until="plateau",
        patience=3,
        min_delta=0.01,
        max_steps=500,
        learning_rate=1e-4,
        schedule="cosine,warmup=5",
        rates="@head=1e-3 @norm=0.1",
        weight_decay=0.05,
        decays="@head=0",
        layer_decay=0.75,
        clip_norm=1.0,
    )
    assert parse("name=a train=@head steps=20") == Phase(name="a", train="@head", steps=20)
    assert parse("train='@head' epochs=1.5") == Phase(name="train", train="@head", epochs=1.5)


def test_numbers_have_the_type_of_their_key() -> None:
    phase = parse("train=@all steps=20 learning_rate=1 clip_norm=2")
    assert isinstance(phase.steps, int)
    assert isinstance(phase.learning_rate, float)
    assert isinstance(phase.clip_norm, float)


def test_what_a_phase_leaves_out_comes_from_the_run() -> None:
    assert parse("name=a", train="@head", steps=7) == Phase(name="a", train="@head", steps=7)
    assert parse("name=a", train="@head", epochs=2) == Phase(name="a", train="@head", epochs=2)
    assert parse("name=a train=@all steps=3", train="@head", epochs=2) == Phase(name="a", train="@all", steps=3)
    assert parse("train=@all until=plateau max_steps=9", steps=2).steps is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=@all steps=1 speed=3", "`speed=3` is not a key=value of a phase"),
        ("train=@all step=1", "nearest: steps"),
        ("train=@all steps", "`steps` is not a key=value"),
        ("train=@all steps=1 steps=2", "`steps` is given twice"),
        ("steps=1", "there is neither a train=FILTER"),
        ("train=@all", "expected exactly one of steps=, epochs= and until=; got none"),
        ("train=@all steps=1 epochs=1", "exactly one of"),
        ("train=@all steps=1 until=plateau max_steps=3", "exactly one of"),
        ("train=@all steps=1.5", "steps='1.5' is not a whole number"),
        ("train=@all steps=1_0", "steps='1_0' is not a whole number"),
        ("train=@all steps=", "steps='' is not a whole number"),
        ("train=@all epochs=many", "epochs='many' is not a number"),
        ("train=@all steps=3 learning_rate=1_0", "learning_rate='1_0' is not a number"),
        ("train= steps=1", "train= is empty"),
        ("name= train=@all steps=1", "name= is empty"),
        ("train=@all steps=0", "steps=0: expected a number above 0"),
        ("train=@all steps=-4", "steps=-4: expected a number above 0"),
        ("train=@all epochs=0", "epochs=0.0: expected a number above 0"),
        ("train=@all epochs=nan", "epochs=nan: expected a number above 0"),
        ("train=@all epochs=inf", "epochs=inf: expected a finite number above 0"),
        ("train=@all steps=1 learning_rate=0", "learning_rate=0.0: expected a number above 0"),
        ("train=@all steps=1 learning_rate=inf", "learning_rate=inf: expected a finite number above 0"),
        ("train=@all steps=1 clip_norm=0", "clip_norm=0.0: expected a number above 0"),
        ("train=@all steps=1 weight_decay=-1", "weight_decay=-1.0: expected a number of at least 0"),
        ("train=@all steps=1 weight_decay=nan", "weight_decay=nan: expected a number of at least 0"),
        ("train=@all steps=1 layer_decay=0", "layer_decay=0.0: expected a number above 0 and at most 1"),
        ("train=@all steps=1 layer_decay=1.1", "expected a number above 0 and at most 1"),
        ("train=@all steps=1 layer_decay=nan", "expected a number above 0 and at most 1"),
        ("train=@all until=plateau", "until=plateau needs max_steps=N"),
        ("train=@all until=forever max_steps=3", "until='forever': expected plateau"),
        ("train=@all until=plateau max_steps=0", "max_steps=0: expected a number above 0"),
        ("train=@all until=plateau max_steps=9 patience=0", "patience=0: expected a number above 0"),
        ("train=@all until=plateau max_steps=9 min_delta=-1", "min_delta=-1.0: expected a number of at least 0"),
        ("train=@all steps=3 max_steps=9", "max_steps=9 is valid only with until=plateau"),
        ("train='@all", "No closing quotation"),
    ],
)
def test_what_is_no_phase_is_refused_with_the_rule(text: str, message: str) -> None:
    with pytest.raises(PhaseError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_errors_of_filter_and_schedule_come_through() -> None:
    with pytest.raises(FilterError, match="`@hed` is not a group; nearest: @head"):
        parse("train=@hed steps=1")
    with pytest.raises(ScheduleError, match="nearest: cosine"):
        parse("train=@head steps=1 schedule=cosin")


# --- lengths ---


def test_epochs_become_steps_rounded_and_at_least_one() -> None:
    def length(epochs: float) -> int:
        return Phase(name="a", train="@all", epochs=epochs).step_count(10)

    assert [length(e) for e in (1, 2, 0.5, 0.24, 0.01)] == [10, 20, 5, 2, 1]
    assert steps("a", 7).step_count(10) == 7
    assert until(max_steps=70).step_count(10) == 70


# --- plateau, score, best ---


def test_a_plateau_ends_after_patience_evaluations_without_a_new_best() -> None:
    found = losses(1.0, 0.5, 0.6, 0.7, 0.8)
    assert find_plateau(found, "eval_loss", patience=2) == 40
    assert find_plateau(found, "eval_loss", patience=3) == 50
    assert find_plateau(found, "eval_loss", patience=4) is None


def test_an_improvement_starts_the_count_again() -> None:
    assert find_plateau(losses(1.0, 1.1, 0.9, 1.0, 0.8), "eval_loss", patience=2) is None
    assert find_plateau(losses(1.0, 1.1, 0.9, 1.0, 1.0), "eval_loss", patience=2) == 50


def test_equal_is_no_improvement() -> None:
    assert find_plateau(losses(1.0, 1.0, 1.0), "eval_loss", patience=2) == 30


def test_an_improvement_by_no_more_than_min_delta_is_none() -> None:
    found = losses(1.0, 0.75, 0.5)
    assert find_plateau(found, "eval_loss", patience=2, min_delta=0.5) == 30
    assert find_plateau(found, "eval_loss", patience=2, min_delta=0.499) is None  # 0.5 is 0.5 better than the best, 1.0


def test_accuracy_is_better_when_higher_and_loss_when_lower() -> None:
    rising = [evaluation(10 * n, loss=float(n), accuracy=n / 10) for n in range(1, 5)]
    assert find_plateau(rising, "eval_accuracy", patience=2) is None
    assert find_plateau(rising, "eval_loss", patience=2) == 30
    assert best_evaluation(rising, "eval_accuracy") == rising[-1]
    assert best_evaluation(rising, "eval_loss") == rising[0]


@pytest.mark.parametrize("monitor", ["eval_loss", "eval_accuracy"])
def test_not_a_number_is_worse_than_everything_and_never_better(monitor: Any) -> None:
    nan = evaluation(10, math.nan, math.nan)
    poor = evaluation(20, 1e30, 0.0)
    assert score(nan, monitor) == -math.inf
    assert best_evaluation([nan, poor], monitor) == poor
    assert find_plateau([nan, nan], monitor, patience=2) == 10
    assert find_plateau([nan, poor], monitor, patience=2) is None


def test_an_accuracy_that_does_not_exist_is_worst() -> None:
    assert score(evaluation(1, 0.0, None), "eval_accuracy") == -math.inf


def test_the_first_of_equally_good_evaluations_is_the_best() -> None:
    found = losses(1.0, 0.5, 0.5)
    assert best_evaluation(found, "eval_loss") == found[1]
    assert best_evaluation([], "eval_loss") is None


# --- locate ---


def test_phases_of_fixed_length_follow_each_other() -> None:
    phases = [steps("a", 3), steps("b", 2)]
    where = [locate(phases, 10, step, [], "eval_loss") for step in range(7)]
    first = Position(0, 0, ())
    second = Position(1, 3, ((3, "steps"),))
    end = Position(2, 5, ((3, "steps"), (5, "steps")))
    assert where == [first] * 3 + [second] * 2 + [end] * 2


def test_a_plateau_ends_a_phase_at_its_evaluation() -> None:
    phases = [until(patience=2, min_delta=0.0), steps("b", 5)]
    found = losses(1.0, 1.0, 1.0)
    assert locate(phases, 10, 29, found[:2], "eval_loss") == Position(0, 0, ())
    assert locate(phases, 10, 30, found, "eval_loss") == Position(1, 30, ((30, "plateau"),))
    assert locate(phases, 10, 34, found, "eval_loss") == Position(1, 30, ((30, "plateau"),))
    assert locate(phases, 10, 35, found, "eval_loss").phase == 2


def test_max_steps_ends_a_phase_that_keeps_getting_better() -> None:
    phases = [until(max_steps=40), steps("b", 5)]
    found = losses(1.0, 0.8, 0.6, 0.4)
    assert locate(phases, 10, 39, found[:3], "eval_loss") == Position(0, 0, ())
    assert locate(phases, 10, 40, found, "eval_loss") == Position(1, 40, ((40, "max_steps"),))


def test_a_plateau_in_the_last_step_is_max_steps() -> None:
    phases = [until(max_steps=30, patience=2)]
    assert locate(phases, 10, 30, losses(1.0, 1.0, 1.0), "eval_loss") == Position(1, 30, ((30, "max_steps"),))


def test_evaluations_before_a_phase_do_not_count_for_it() -> None:
    phases = [steps("a", 30), until(patience=2)]
    found = losses(0.1, 0.1, 0.1, 5.0, 4.0, 4.0)  # steps 10 to 60; the one at 30 belongs to the first phase
    assert locate(phases, 10, 60, found, "eval_loss") == Position(1, 30, ((30, "steps"),))
    found.append(evaluation(70, 4.0))
    assert locate(phases, 10, 70, found, "eval_loss").ended == ((30, "steps"), (70, "plateau"))


def test_evaluations_after_the_step_in_question_do_not_count() -> None:
    phases = [until(patience=2)]
    assert locate(phases, 10, 20, losses(1.0, 1.0, 1.0), "eval_loss") == Position(0, 0, ())


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_run_that_asks_at_every_step_visits_what_the_saved_state_says(data: st.DataObject) -> None:
    """Walks steps one by one, as the loop does, and compares with one question at the end."""
    phases = data.draw(
        st.lists(
            st.one_of(
                st.builds(lambda n: steps("s", n), st.integers(1, 6)),
                st.builds(lambda n, p: until(max_steps=n, patience=p), st.integers(1, 8), st.integers(1, 3)),
            ),
            min_size=1,
            max_size=4,
        )
    )
    values = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan]), min_size=40, max_size=40))
    current, from_step, found = 0, 0, []
    for step in range(1, 41):
        found.append(evaluation(step, values[step - 1]))
        before = current
        where = locate(phases, 5, step, found, "eval_loss")
        assert where.phase in (before, before + 1)  # no phase is skipped or gone back to
        if where.phase != before:
            from_step = step
        assert where.from_step == from_step
        assert locate(phases, 5, step, found + losses(0.0, every=1, start=step + 1), "eval_loss") == where
        current = where.phase
        if current == len(phases):
            break


# --- groups ---


def expanded(*texts: str) -> list[Phase]:
    return expand_groups([parse(text, train="@head", steps=1) for text in texts])


def test_the_phases_of_a_group_take_turns() -> None:
    found = expanded(
        "name=first", "name=a group=turns repeat=2 losses=species learning_rate=0.1", "name=b group=turns", "name=last"
    )
    assert [phase.name for phase in found] == ["first", "turns.1.a", "turns.1.b", "turns.2.a", "turns.2.b", "last"]
    assert found[1] == Phase(name="turns.1.a", train="@head", steps=1, losses="species", learning_rate=0.1)
    assert [phase.name for phase in expanded("name=a repeat=3", "name=b")] == ["a.1", "a.2", "a.3", "b"]
    assert [phase.name for phase in expanded("name=a group=g repeat=1", "name=b group=h repeat=1")] == [
        "g.1.a",
        "h.1.b",
    ]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("name=a group=g", "name=b group=g"), "phase 'a': group=g has no repeat=N"),
        (
            ("name=a group=g repeat=2", "name=b group=g repeat=3"),
            "phase 'b': repeat=3, but phase 'a' of group=g has repeat=2",
        ),
        (
            ("name=a group=g repeat=2", "name=b", "name=c group=g"),
            "phase 'c': group=g: its phases must follow each other",
        ),
        (("name=a group=g repeat=0",), "phase 'a': repeat=0: expected a number from 1 to 1000"),
        (("name=a group=g repeat=1001",), "phase 'a': repeat=1001: expected a number from 1 to 1000"),
        (("name=a repeat=600", "name=b repeat=600"), "with all repeats there are 1,200 phases; expected at most 1,000"),
        (("name=a group= repeat=2",), "group= is empty"),
    ],
)
def test_what_is_wrong_in_a_group_is_told(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(PhaseError, match=message):
        expanded(*texts)
