"""When a part has stalled: a rule on numbers alone, its text form, and the state that checkpoints keep."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from engine.errors import InputError
from engine.training.auto_freeze import AutoFreeze, AutoFreezeState, Move, measure_plasticity, parse_auto_freeze

RULE = AutoFreeze(threshold=0.5, patience=2)


@pytest.mark.parametrize(
    ("plasticity", "stalled"),
    [
        ([], False),
        ([0.04], False),
        ([0.04, 0.04], False),  # as far as ever
        ([0.08, 0.04, 0.04], True),
        ([0.08, 0.04, 0.041], False),  # once more above the threshold
        ([0.08, 0.03, 0.05, 0.03], False),  # noise: not in a row
        ([0.01, 0.02, 0.08, 0.04, 0.03], True),  # a warm-up: the largest comes later
        ([0.01, 0.01, 0.01, 0.01], False),  # a constant pace
        ([0.0, 0.0, 0.0], False),  # it has not begun to move
        ([0.08, 0.0, 0.0], True),
        ([math.nan, 0.08, 0.04, 0.04], True),
        ([math.inf, 0.08, 0.08, 0.08], False),
        ([0.08, math.nan, 0.04], False),
        ([0.08, 0.04, math.inf], False),
        ([math.nan, math.nan, math.nan], False),
    ],
)
def test_a_part_has_stalled_once_it_fell_to_a_share_of_its_largest_plasticity(
    plasticity: list[float], stalled: bool
) -> None:
    assert RULE.has_stalled(plasticity) is stalled


def test_parts_are_frozen_from_the_lowest_on_and_several_at_once() -> None:
    still, moving = [0.08, 0.02, 0.01], [0.08, 0.02, 0.07]
    assert RULE.count_stalled([still, still, moving, still]) == 2
    assert RULE.count_stalled([moving, still, still]) == 0
    assert RULE.count_stalled([]) == 0


def test_a_larger_patience_or_a_smaller_threshold_never_freezes_earlier() -> None:
    draws = np.random.default_rng(0)
    for _ in range(200):
        values = list(draws.random(6))
        for stricter in (AutoFreeze(threshold=0.4), AutoFreeze(threshold=0.5, patience=3)):
            assert AutoFreeze(threshold=0.5).has_stalled(values) >= stricter.has_stalled(values)


def test_plasticity_is_the_relative_change_of_all_weights_of_a_part_as_one_vector() -> None:
    before = [np.array([[3.0]], np.float32), np.array([4.0], np.float32)]
    after = [np.array([[3.0]], np.float32), np.array([4.5], np.float32)]
    assert measure_plasticity(before, after) == 0.1
    assert measure_plasticity(before, before) == 0.0
    assert measure_plasticity([np.zeros(2)], [np.ones(2)]) == 1.0
    assert measure_plasticity([np.zeros(2)], [np.zeros(2)]) == 0.0
    assert math.isnan(measure_plasticity([np.ones(2)], [np.array([np.nan, 1.0])]))
    large = [np.full(4, 1e30, np.float32)]
    assert measure_plasticity(large, [np.full(4, 1.5e30, np.float32)]) == pytest.approx(0.5)  # in float64


def test_the_text_says_on_or_what_differs_from_the_defaults() -> None:
    assert parse_auto_freeze("on") == AutoFreeze()
    assert parse_auto_freeze("patience=3") == AutoFreeze(patience=3)
    assert parse_auto_freeze("threshold=0.25, patience=1") == AutoFreeze(threshold=0.25, patience=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected on, or threshold="),
        ("off", "leave the flag out"),
        ("yes", "expected on, or threshold="),
        ("treshold=0.5", "nearest: threshold"),
        ("threshold", "threshold='' is not a number"),
        ("threshold=half", "threshold='half' is not a number"),
        ("threshold=0", "threshold=0.0: expected a number above 0 and below 1"),
        ("threshold=1", "threshold=1.0: expected a number above 0 and below 1"),
        ("threshold=nan", "threshold=nan: expected a number above 0"),
        ("patience=0", "patience=0: expected a number of at least 1"),
        ("patience=1.5", "patience='1.5' is not a whole number"),
        ("patience=inf", "patience='inf' is not a whole number"),
        ("patience=1_0", "patience='1_0' is not a whole number"),
        ("patience=1,patience=2", "`patience` is given twice"),
        ("on,patience=2", "expected on, or threshold="),
        ("patience=2,", "expected on, or threshold="),
    ],
)
def test_a_text_that_says_something_else_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_auto_freeze(text)
    assert str(refused.value).startswith(f"auto_freeze={text!r}: ")
    assert says in str(refused.value)


def test_the_state_survives_a_checkpoint_with_all_bits() -> None:
    move = Move(step=4, phase="above_a", parts=("a",), plasticity=(0.1 / 3,), largest=(0.3,), cached=True)
    state = AutoFreezeState(
        [(2, {"a": 0.3, "b": 1e-17}), (4, {"a": 0.1 / 3, "b": math.inf})], [move], {"b/w": np.ones(2)}
    )
    back = AutoFreezeState.from_json(
        json.loads(json.dumps(state.to_json())), dict(state.arrays()) | {"b/w": np.zeros(2)}
    )
    assert (back.measured, back.moves) == (state.measured, state.moves)
    assert list(back.reference) == ["b/w"]
    assert back.reference["b/w"].tobytes() == np.ones(2).tobytes()
    assert back.frozen == ["a"]
    assert back.values("b") == [1e-17, math.inf]


@pytest.mark.parametrize(
    "broken", [{"step": "4"}, {"parts": ["a", "b"]}, {"parts": []}, {"unknown": 1}, {"plasticity": 0.1}]
)
def test_a_move_that_is_not_valid_is_refused(broken: dict[str, object]) -> None:
    move = Move(step=4, phase="above_a", parts=("a",), plasticity=(0.1,), largest=(0.3,), cached=True).to_json()
    assert Move.from_json(move).to_json() == move
    with pytest.raises((TypeError, ValueError)):
        Move.from_json(move | broken)
