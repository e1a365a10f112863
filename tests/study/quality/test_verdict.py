"""The verdict of quality mode: it recommends the cheapest of what cannot be told apart from the best, and says how sure that is."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import made_quality
import numpy as np
import pytest

from engine.errors import InputError
from engine.study.bootstrap import compare
from engine.study.quality.verdict import Judged, compare_strategies, decide
from engine.study.recommend import recommend

ABOUT = {"part": "test", "examples": 400, "seeds": [0], "same_part": False}


def row(
    name: str,
    accuracy: float | None,
    *,
    seconds: float | None = 10.0,
    parameters: int = 1000,
    loss: float | None = 0.5,
    **more: Any,
) -> dict[str, Any]:
    """A row that was judged; ``more`` replaces keys of ``quality``."""
    (judged,) = made_quality.judge({name: accuracy or 0.5}, examples=400, shifted=False).values()
    found = made_quality.row(name, judged, seconds=seconds or 0.0, parameters=parameters)
    found["quality"]["test"] |= {"accuracy": accuracy, "loss": loss, "calibration_error": None, "classes": []}
    found["quality"] |= {"seconds": seconds, "rates": []} | more
    return found


def link(
    rows: list[dict[str, Any]], unresolved: set[frozenset[str]], *, metric: str = "accuracy", needed: int | None = 4800
) -> list[dict[str, Any]]:
    """Adds comparisons: all differences are resolved but those of the named pairs."""
    for one in rows:
        for other in rows:
            if one is not other:
                mean = one["quality"]["test"][metric] - other["quality"]["test"][metric]
                resolved = frozenset((one["strategy"], other["strategy"])) not in unresolved
                wide = abs(mean) / 2 if resolved else abs(mean) + 0.004
                one["quality"]["compared"].append(
                    {"with": other["strategy"], "metric": metric, "mean": mean, "low": mean - wide, "high": mean + wide, "level": 0.95, "examples": 400,
                     "seeds": 1, "differing": 20, "resolved": resolved, "examples_needed": 300 if resolved else needed, "shifted": None}
                )  # fmt: skip
    return rows


def pairs(*names: str) -> set[frozenset[str]]:
    return {frozenset(name.split()) for name in names}


# ---- comparisons


@pytest.mark.parametrize("accuracy", [True, False])
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_ordered_pair_is_what_compare_says(accuracy: bool, seeds: int) -> None:
    judged = made_quality.judge({"a": 0.7, "b": 0.75, "c": 0.8}, examples=150, seeds=seeds, accuracy=accuracy)
    found = compare_strategies(judged, draws=400, seed=3)
    for one, rows in found.items():
        assert [each["with"] for each in rows] == [name for name in judged if name != one]
        for each in rows:
            assert each["metric"] == ("accuracy" if accuracy else "loss")
            for kind, key in (("right" if accuracy else "loss", None), ("shifted", "shifted")):
                mine = each if key is None else each[key]
                both = (getattr(judged[name], kind) for name in (one, each["with"]))
                for field, value in dataclasses.asdict(compare(*both, draws=400, seed=3)).items():
                    assert mine[field] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), (
                        field
                    )


def test_what_is_0_or_1_has_the_bits_of_compare_alone_and_of_any_other_company() -> None:
    judged = made_quality.judge({"a": 0.7, "b": 0.75, "c": 0.8}, examples=120, seeds=3, shifted=False)
    (found,) = [each for each in compare_strategies(judged, draws=300)["a"] if each["with"] == "c"]
    assert judged["a"].right is not None
    alone = dataclasses.asdict(compare(judged["a"].right, judged["c"].right, draws=300))
    assert {key: found[key] for key in alone} == alone
    two = {name: judged[name] for name in ("a", "c")}
    assert compare_strategies(two, draws=300)["a"] == [found]


def test_twelve_strategies_take_a_few_seconds() -> None:
    judged = made_quality.judge({f"s{n}": 0.7 + n / 100 for n in range(12)}, examples=2000, seeds=3)
    start = time.process_time()
    found = compare_strategies(judged, draws=2000)  # a fifth of the default; one by one they would take 60 s
    assert time.process_time() - start < 10
    assert sum(len(rows) for rows in found.values()) == 132


def test_one_strategy_and_none_have_nothing_to_compare() -> None:
    assert compare_strategies({}) == {}
    assert compare_strategies(made_quality.judge({"a": 0.7})) == {"a": []}


def test_other_examples_or_seeds_are_an_error_that_names_both() -> None:
    judged = made_quality.judge({"a": 0.7}) | made_quality.judge({"b": 0.7}, seeds=2)
    with pytest.raises(
        InputError, match=r"a, b: shapes \[1, 372\] and \[2, 372\]; expected the same seeds and examples"
    ):
        compare_strategies(judged, draws=100)


def test_a_loss_that_is_not_finite_is_not_compared_and_never_recommended() -> None:
    judged = made_quality.judge({"a": 0.7, "b": 0.9, "c": 0.8}, accuracy=False)
    judged["b"].loss[0, 3] = np.nan
    found = compare_strategies(judged, draws=100)
    assert [each["with"] for each in found["a"]] == ["c"]
    assert found["b"] == []
    study = made_quality.study(accuracy=False)
    study["results"][-1]["quality"]["test"]["loss"] = None
    verdict = decide(study["results"], study["quality"])
    assert verdict.excluded == ({"strategy": "full", "reason": "its loss on the examples that judge is not finite"},)
    assert verdict.best == "lp_ft"


def test_only_what_has_corruptions_is_compared_under_them() -> None:
    judged = made_quality.judge({"a": 0.7, "b": 0.75})
    judged["c"] = Judged(loss=judged["a"].loss, right=judged["a"].right)
    found = compare_strategies(judged, draws=100)
    assert [each["shifted"] is None for each in found["a"]] == [False, True]
    assert [each["shifted"] for each in found["c"]] == [None, None]


# ---- the recommendation


def test_the_cheapest_of_the_equals_is_recommended_in_the_words_of_the_rule() -> None:
    rows = [row("head", 0.71, seconds=5.0), row("last_2", 0.812, seconds=31.0), row("full", 0.823, seconds=100.0)]
    found = decide(link(rows, pairs("last_2 full")), ABOUT | {"examples": 372})
    assert (found.recommended, found.best, found.equals, found.cost) == ("last_2", "full", ("last_2",), "seconds")
    assert found.sentence == (
        "last_2 is recommended: on 372 test examples it cannot be told apart from full (accuracy 0.812 against 0.823, 95% interval of the "
        "difference -0.004 to +0.026), and it trains in 31% of the time."
    )
    text = "\n".join(found.reasons)
    assert "Resolvably worse than full: head by 11.3 points (+5." in text
    assert "Cannot be told apart from full: last_2 (1.1 points less; about 4,800 examples would show it)." in text
    assert found.to_json()["equals"] == ["last_2"]
    assert set(found.to_json()) == {field.name for field in dataclasses.fields(found)}


def test_what_is_cheap_and_resolvably_worse_is_not_recommended() -> None:
    rows = [row("head", 0.71, seconds=1.0), row("full", 0.82, seconds=100.0)]
    found = decide(link(rows, set()), ABOUT)
    assert found.recommended == "full"
    assert "resolvably better than every other strategy. The next is head with 0.710" in found.sentence


def test_an_equal_of_the_best_that_another_one_beats_is_not_its_equal() -> None:
    rows = [row("a", 0.82, seconds=90.0), row("b", 0.81, seconds=50.0), row("c", 0.79, seconds=9.0)]
    found = decide(link(rows, pairs("a b", "a c")), ABOUT)
    assert (found.recommended, found.equals) == ("b", ("b",))
    assert any(
        text.startswith("c cannot be told apart from a either, but b is resolvably better than c")
        for text in found.reasons
    )


def test_the_times_of_mode_both_count_only_if_all_have_one() -> None:
    def rows(missing: bool) -> list[dict[str, Any]]:
        costs = [{"runner": "engine", "job_seconds": s, "peak_rss_bytes": 1} for s in (80.0, 20.0)]
        return link(
            [
                row("a", 0.82, seconds=10.0, cost=costs[0]),
                row("b", 0.81, seconds=30.0, cost=None if missing else costs[1]),
            ],
            pairs("a b"),
        )

    assert (decide(rows(False), ABOUT).recommended, decide(rows(False), ABOUT).cost) == ("b", "job_seconds")
    assert (decide(rows(True), ABOUT).recommended, decide(rows(True), ABOUT).cost) == ("a", "seconds")
    without = [row("a", 0.82, seconds=None, parameters=50), row("b", 0.81, parameters=10)]
    found = decide(link(without, pairs("a b")), ABOUT)
    assert (found.recommended, found.cost) == ("b", "trained_parameters")
    assert found.sentence.endswith("and it trains 20% of its parameters.")


def test_about_equal_times_leave_the_choice_to_the_parameters() -> None:
    rows = [
        row("a", 0.82, seconds=10.0, parameters=500),
        row("b", 0.81, seconds=10.3, parameters=100),
        row("c", 0.81, seconds=11.0, parameters=1),
    ]
    found = decide(link(rows, pairs("a b", "a c", "b c")), ABOUT)
    assert found.recommended == "b"
    assert "takes about the same time and trains 20% of its parameters" in found.sentence


def test_without_an_accuracy_the_lowest_loss_is_best() -> None:
    rows = [
        row("a", None, loss=0.50, seconds=9.0),
        row("b", None, loss=0.41, seconds=90.0),
        row("c", None, loss=0.42, seconds=20.0),
    ]
    found = decide(link(rows, pairs("b c"), metric="loss"), ABOUT)
    assert (found.metric, found.best, found.recommended) == ("loss", "b", "c")
    assert "Resolvably worse than b: a by 0.09 in loss (+0.045 to +0.135)." in found.reasons
    assert "(loss 0.4200 against 0.4100, 95% interval of the difference -0.004 to +0.024)" in found.sentence


def test_one_strategy_is_not_called_better_than_anything() -> None:
    found = decide([row("head", 0.7)], ABOUT)
    assert found.recommended == "head"
    assert (
        found.sentence
        == "head reaches an accuracy of 0.700 on 400 test examples; there is no other strategy to compare it with."
    )
    assert not any("best strategy" in text for text in found.reasons)


def test_what_failed_diverged_or_broke_its_proof_is_never_recommended() -> None:
    broken = row("broken", 0.99, seconds=0.1) | {"freeze_verified": False}
    hopeless = [made_quality.hopeless(name, name) for name in ("failed", "diverged", "pending")]
    found = decide([broken, *hopeless, row("head", 0.7), {"strategy": "head", "runner": "engine"}], ABOUT)
    assert found.recommended == "head"
    assert {each["strategy"]: each["reason"] for each in found.excluded} == {
        "broken": "its freeze proof failed: frozen variables changed",
        "failed": "it failed (MemoryError: 2 GiB <tensor> & more)",
        "diverged": "every learning rate diverged (0.1, 1)",
        "pending": "it has not been judged",
    }
    assert "Diverged, and so not chosen: at 0.1 diverged and pending; at 1 diverged." in found.reasons
    nothing = decide([broken, *hopeless], ABOUT)
    assert (nothing.recommended, nothing.best, nothing.warnings) == (None, None, ())
    assert nothing.sentence.startswith("No strategy can be recommended. broken: its freeze proof failed")
    assert decide([], ABOUT).sentence == "No strategy can be recommended: none has been tried."


def test_no_better_than_one_answer_for_everything_is_no_recommendation() -> None:
    rows = [row("head", 0.30), row("full", 0.39)]
    for each in rows:
        each["quality"]["test"]["classes"] = [
            {"name": "cat", "examples": 160, "accuracy": 0.9},
            {"name": "dog", "examples": 240, "accuracy": 0.1},
        ]
    found = decide(link(rows, pairs("head full")), ABOUT)
    assert (found.recommended, found.best) == (None, "full")
    assert (
        "none is better than the answer dog for everything, which is right for 0.600 of the 400 test examples"
        in found.sentence
    )
    rows[1]["quality"]["test"]["accuracy"] = 0.61
    assert decide(rows, ABOUT).recommended is not None


def test_a_missing_comparison_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(InputError, match="head was not compared with full"):
        decide([row("head", 0.7), row("full", 0.8)], ABOUT)


@pytest.mark.parametrize("seeds", [1, 2])
def test_nothing_that_is_cheaper_or_resolvably_better_is_passed_over(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    recommended = set()
    for _ in range(15):
        shares = {
            name: (float(rng.uniform(0.55, 0.8)), float(rng.uniform(5, 50)), int(rng.integers(1, 10_000)))
            for name in "abcdef"
        }
        study = made_quality.study(
            shares, seeds=seeds, examples=int(rng.integers(30, 150)), accuracy=bool(rng.integers(2)), shifted=False
        )
        rows = {each["strategy"]: each for each in study["results"]}
        found = decide(study["results"], study["quality"])
        assert found.recommended is not None
        assert found.best not in found.equals
        mine = rows[found.recommended]
        better = [
            c for c in mine["quality"]["compared"] if c["resolved"] and (c["mean"] < 0) == (found.metric == "accuracy")
        ]
        assert not better
        level = [rows[name]["quality"]["seconds"] for name in (*found.equals, found.best)]
        assert mine["quality"]["seconds"] <= 1.05 * min(level)
        assert found.recommended in (*found.equals, found.best)
        recommended.add(found.recommended == found.best)
    assert recommended == {True, False}, "both kinds have been tried"


def test_the_recommendation_of_cost_mode_looks_at_cost_runs_alone() -> None:
    both = made_quality.study(mode="both")
    for each in both["results"]:
        if each["runner"] == "quality":
            for key in ("job_seconds", "eval_accuracy", "eval_loss", "peak_rss_bytes"):
                del each[key]
    alone = dict(both, results=[each for each in both["results"] if each["runner"] != "quality"])
    assert recommend(both) == recommend(alone)


# ---- what is said beside it


def test_warnings_say_what_weakens_the_verdict() -> None:
    edge = row(
        "full",
        0.8,
        chosen={"learning_rate": 0.01, "by": "eval_accuracy", "edge": "highest", "command": "", "commands": []},
    )
    found = decide([edge], ABOUT | {"same_part": True, "part": "evaluation"})
    first, second, third = found.warnings
    assert first.startswith(
        "There is no test part: the evaluation part chose the learning rates and judged the strategies as well"
    )
    assert second.startswith("With one seed, the comparison is one of trained models, not of strategies")
    assert third == "The best learning rate is the highest of those tried for full (0.01): a higher one may be better."
    assert "400 evaluation examples" in found.sentence
    assert decide([row("a", 0.8)], ABOUT | {"seeds": [0, 1, 2]}).warnings == ("With 3 seeds, how much a strategy varies by chance is known only roughly.",)  # fmt: skip
    assert decide([row("a", 0.8)], ABOUT | {"seeds": [0, 1, 2, 3]}).warnings == ()


def test_a_better_strategy_under_corruptions_is_named() -> None:
    rows = link([row("head", 0.80, seconds=3.0), row("full", 0.81)], pairs("head full"))
    shifted = {
        "mean": -0.1,
        "low": -0.15,
        "high": -0.05,
        "level": 0.95,
        "resolved": True,
        "examples_needed": 90,
        "seeds": 1,
        "differing": 99,
        "examples": 400,
    }
    rows[0]["quality"]["compared"][0]["shifted"] = shifted
    rows[1]["quality"]["compared"][0]["shifted"] = shifted | {"mean": 0.1, "low": 0.05, "high": 0.15}
    found = decide(rows, ABOUT)
    assert found.recommended == "head"
    assert any(
        text.startswith("Under the corruptions, resolvably better than head: full by 10.0 points (+5.0 to +15.0).")
        for text in found.reasons
    )
    rows[1]["quality"]["compared"][0]["shifted"]["resolved"] = False
    assert "Under the corruptions, no strategy is resolvably better than head." in decide(rows, ABOUT).reasons


def test_more_seeds_are_asked_for_where_no_number_of_examples_would_do() -> None:
    rows = link([row("a", 0.80), row("b", 0.81)], pairs("a b"), needed=None)
    for each in rows:
        each["quality"]["compared"][0]["seeds"] = 3
    assert "only more seeds could show it" in "".join(decide(rows, ABOUT).reasons)


def test_calibration_is_told_beside_the_best() -> None:
    rows = link([row("a", 0.80), row("b", 0.81)], set())
    for each, error in zip(rows, (0.02, 0.06), strict=True):
        each["quality"]["test"]["calibration_error"] = error
    assert "The calibration error of b is 0.060; the least is that of a, 0.020." in decide(rows, ABOUT).reasons
