"""What is recommended, and in which words."""

from __future__ import annotations

import itertools
from typing import Any

import made
import numpy as np
import pytest

from engine.study.recommend import find_candidates, find_efficient, recommend


def study_of(*rows: dict[str, Any], before: float | None = 0.1, eval_examples: int = 100_000) -> dict[str, Any]:
    found = made.study([], [])
    found["results"] = list(rows)
    found["strategies"] = [{"name": name} for name in dict.fromkeys(r["strategy"] for r in rows)]
    found["baseline"] = {"eval_loss": 2.0, "eval_accuracy": before}
    found["job"]["eval_examples"] = eval_examples
    return found


def row(
    strategy: str,
    accuracy: float | None,
    seconds: float,
    memory: int | None = 100,
    runner: str = "engine",
    **other: Any,
) -> dict[str, Any]:
    whole = made.row(strategy, runner, order=0, trained=5, parameters=10)
    spread = {"least": seconds, "most": seconds}
    return (
        whole
        | {"eval_accuracy": accuracy, "job_seconds": seconds, "peak_rss_bytes": memory, "job_seconds_spread": spread}
        | other
    )


def test_the_cheapest_that_reaches_95_percent_of_the_largest_gain_is_recommended() -> None:
    found = recommend(study_of(row("head", 0.7, 1, 30), row("last_2", 0.876, 3.1, 40), row("full", 0.9, 10)))
    assert found.sentence == "last_2 achieves 97% of full's gain at 31% of its time and 40% of its memory."
    assert found.chosen is not None
    assert (found.chosen.strategy, found.chosen.runner) == ("last_2", "engine")
    assert found.reference is not None
    assert found.reference.strategy == "full"


def test_a_share_just_under_95_percent_is_not_enough() -> None:
    just = recommend(study_of(row("a", 0.1 + 0.8 * 0.9501, 1), row("full", 0.9, 2)))
    under = recommend(study_of(row("a", 0.1 + 0.8 * 0.9499, 1), row("full", 0.9, 2)))
    assert just.sentence.startswith("a achieves 95% of full's gain at 50%")
    assert under.sentence == (
        "full is worth its cost: the best cheaper strategy, a, achieves only 94% of full's gain at 50% of its time and 100% of its memory."
    )


def test_the_fastest_run_of_the_engine_stands_for_a_strategy() -> None:
    runs = [
        row("head", 0.8, 4),
        row("head", 0.8, 2, runner="engine_cached"),
        row("head", 0.8, 1, runner="v1_trainable"),
    ]
    for order in itertools.permutations(runs):
        (found,) = find_candidates(study_of(*order))
        assert (found.runner, found.seconds) == ("engine_cached", 2)
    (found,) = find_candidates(study_of(runs[2]))
    assert found.runner == "v1_trainable", "where the engine did not run, another may stand for it"


def test_a_broken_proof_is_never_recommended() -> None:
    found = recommend(study_of(row("head", 0.9, 1, freeze_verified=False), row("full", 0.9, 10)))
    assert found.chosen is not None
    assert found.chosen.strategy == "full"
    assert "Not considered, because frozen variables changed: head by engine." in found.reasons


def test_without_full_the_best_stands_in() -> None:
    for full in (made.failed("full", "engine", "killed"), None):
        rows = [row("head", 0.88, 1), row("last_2", 0.9, 4), *([full] if full else [])]
        found = recommend(study_of(*rows))
        assert found.sentence == "head achieves 97% of last_2's gain at 25% of its time and 100% of its memory."
        assert any("no usable run of full" in reason for reason in found.reasons)
    assert "full" not in [c.strategy for c in found.candidates]


def test_full_may_be_beaten() -> None:
    found = recommend(study_of(row("head", 0.9, 1), row("full", 0.5, 4)))
    assert found.sentence.startswith("head achieves 200% of full's gain at 25% of its time")
    found = recommend(study_of(row("head", 0.9, 1), row("full", 0.05, 4)))
    assert found.sentence == "head takes the accuracy from 0.100 to 0.900 in 1 s, while full does not improve it."


def test_the_best_that_is_the_cheapest_too_says_so() -> None:
    found = recommend(study_of(row("full", 0.9, 1), row("head", 0.5, 4)))
    assert (
        found.sentence
        == "full achieves the largest gain in the least time: it takes the accuracy from 0.100 to 0.900 in 1 s."
    )


def test_one_strategy_alone_is_compared_with_nothing() -> None:
    found = recommend(study_of(row("head", 0.9, 200)))
    assert found.sentence == (
        "head takes the accuracy from 0.100 to 0.900 in 3.3 min; no other strategy finished, so there is nothing to compare it with."
    )


def test_nothing_is_recommended_where_nothing_helped_or_finished() -> None:
    worse = recommend(study_of(row("head", 0.05, 1), row("full", 0.1, 2)))
    assert worse.chosen is None
    assert worse.sentence.startswith(
        "No strategy can be recommended: none made the model better than it was before training (accuracy 0.100)"
    )
    none = recommend(study_of(made.failed("head", "engine", "killed")))
    assert (none.chosen, none.sentence) == (None, "No strategy can be recommended: no run finished.")
    assert "Not considered, because no run is usable: head." in none.reasons
    assert recommend(made.study([], [])).chosen is None


def test_without_accuracy_the_loss_decides_and_lower_is_better() -> None:
    rows = [
        row("head", None, 1, eval_loss=1.04),
        row("full", None, 2, eval_loss=1.0),
        row("bias", None, 1, eval_loss=3.0),
    ]
    found = recommend(study_of(*rows, before=None))
    assert found.sentence.startswith("head achieves 96% of full's gain at 50% of its time")
    assert "evaluation loss after the last step lies below the 2 measured before any training" in found.reasons[0]


def test_times_within_their_spread_are_no_difference() -> None:
    def tie(**other: Any) -> str:
        spread = {"job_seconds_spread": {"least": 9.0, "most": 11.0}}
        return recommend(
            study_of(row("a", 0.9, 9.9, **spread), row("b", **{"accuracy": 0.9, "seconds": 10, **spread, **other}))
        ).chosen.strategy  # type: ignore[union-attr]

    assert tie() == "a", "all equal: the faster"
    assert tie(accuracy=0.91) == "b"
    assert tie(memory=99) == "b"
    assert tie(trained_parameters=4) == "b"
    assert tie(accuracy=0.91, seconds=11.7, job_seconds_spread={"least": 11.5, "most": 12}) == "a"
    words = recommend(study_of(row("a", 0.9, 1), row("b", 0.9, 1, memory=99))).reasons
    assert any("the time of b cannot be distinguished from that of a" in reason for reason in words)


def test_accuracies_that_the_evaluation_set_does_not_resolve_are_named() -> None:
    rows = [row("head", 0.80, 1), row("last_2", 0.86, 3), row("full", 0.88, 10)]
    few = " ".join(recommend(study_of(*rows, eval_examples=500)).reasons)
    assert (
        "500 evaluation examples resolve differences of about 0.043 in accuracy, so full cannot be distinguished from last_2."
        in few
    )
    fewer = " ".join(recommend(study_of(*rows, eval_examples=100)).reasons)
    assert (
        "head and full cannot be distinguished from last_2; the cheapest of these, head, takes 33% of its time."
        in fewer
    )
    assert "distinguished" not in " ".join(recommend(study_of(*rows)).reasons)


def test_repeats_that_differ_are_noise_too() -> None:
    study = study_of(row("last_2", 0.86, 3), row("full", 0.88, 10))
    study["curves"] = [made.curve(row("full", last, 10), repeat=n) for n, last in enumerate((0.86, 0.90), start=1)]
    assert "full cannot be distinguished from last_2" in " ".join(recommend(study).reasons)


def test_runs_made_once_say_so() -> None:
    assert (
        "There was only one repeat of each run, so the spread of times is unknown."
        in recommend(study_of(row("a", 0.9, 1, repeats=1))).reasons
    )


def test_a_missing_number_never_stops_it() -> None:
    rows = [
        row("head", 0.8, 1, None, job_seconds_spread=None, trained_parameters=None),
        row("full", 0.81, 3, None),
        row("x", 0.9, 1, job_seconds=None),
        row("y", None, 1),
    ]
    assert recommend(study_of(*rows)).sentence == "head achieves 98% of full's gain at 33% of its time."


@pytest.mark.parametrize("seed", range(20))
def test_efficient_is_what_nothing_beats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 6, (12, 2))]
    found = find_efficient(points)
    for number, (cost, gain) in enumerate(points):
        beaten = any((c <= cost and g > gain) or (c < cost and g >= gain) for c, g in points)
        assert (number in found) is not beaten
    assert [points[n] for n in found] == sorted(points[n] for n in found)
