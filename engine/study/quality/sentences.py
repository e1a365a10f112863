"""The verdict in words: the recommendation, what makes it weaker than it looks, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.study.formatting import count, digits, percent, plural, quality
from engine.study.quality.rows import (
    Row,
    beats,
    choose_cost,
    cost_of,
    find_difference,
    is_number,
    merit,
    parameters_of,
)
from engine.text import join_words

_MOST = 8  # strategies that a sentence lists
_ROUGH = 3  # seeds up to which their spread is known only roughly
_COSTS = {
    "job_seconds": "the time of its fastest engine run in a process of its own",
    "seconds": "the time of its training at the chosen rate, in the process of this study, which shares features and traces",
    "trained_parameters": "the number of its trained parameters, because not every strategy has a time",
}


def describe_examples(about: Mapping[str, Any]) -> str:
    """How many examples judged, such as "372 test examples"."""
    return plural(about["examples"], f"{about['part']} example")


def show_difference(value: float, metric: str) -> str:
    """The size of a difference: in points of accuracy, or in loss."""
    return f"{100 * abs(value):.1f} points" if metric == "accuracy" else f"{digits(abs(value))} in loss"


def show_interval(found: Mapping[str, Any], metric: str) -> str:
    """The interval of the size of a difference, in the same unit."""
    ends = (-found["high"], -found["low"]) if found["mean"] < 0 else (found["low"], found["high"])
    low, high = (f"{100 * end:+.1f}" if metric == "accuracy" else f"{end:+.3g}" for end in ends)
    return f"{low} to {high}"


# ---- the recommendation


def say_nothing_usable(excluded: Mapping[str, str]) -> str:
    """The sentence where no strategy can be recommended at all."""
    if not excluded:
        return "No strategy can be recommended: none has been tried."
    words = [f"{name}: {reason}" for name, reason in excluded.items()]
    more = f"; {len(words) - _MOST} more" if len(words) > _MOST else ""
    return f"No strategy can be recommended. {'; '.join(words[:_MOST])}{more}."


def say_useless(best: Row, metric: str, about: Mapping[str, Any]) -> str:
    """The sentence where even the best strategy is no better than one answer for all examples, or ""."""
    test = best["quality"]["test"]
    classes = [each for each in test.get("classes") or () if each["examples"]]
    if metric != "accuracy" or not classes or sum(each["examples"] for each in classes) != test["examples"]:
        return ""
    largest = max(classes, key=lambda each: each["examples"])
    share = largest["examples"] / test["examples"]
    if test["accuracy"] > share:
        return ""
    return (
        f"No strategy can be recommended: none is better than the answer {largest['name']} for everything, which is right for "
        f"{share:.3f} of the {describe_examples(about)} (the best, {best['strategy']}, reaches {test['accuracy']:.3f}). Train for "
        "longer, or at other learning rates."
    )


def say_recommended(
    chosen: Row, best: Row, equals: Sequence[Row], usable: Sequence[Row], *, about: Mapping[str, Any], metric: str
) -> str:
    """The sentence that recommends a strategy."""
    name, where = chosen["strategy"], describe_examples(about)
    mine, highest = _show(chosen, metric), "highest" if metric == "accuracy" else "lowest"
    if len(usable) == 1:
        return f"{name} reaches {_article(metric)} {metric} of {mine} on {where}; there is no other strategy to compare it with."
    if chosen is not best:
        found = find_difference(best, chosen)
        assert found is not None
        interval = _show_span(found)
        return (
            f"{name} is recommended: on {where} it cannot be told apart from {best['strategy']} ({metric} {mine} against "
            f"{_show(best, metric)}, {interval}), and it {_cheaper(chosen, best, usable)}."
        )
    start = f"{name} is recommended: it has the {highest} {metric}, {mine} on {where}"
    if equals:
        names = join_words(row["strategy"] for row in equals)
        return f"{start}, and {names}, which cannot be told apart from it, {'is' if len(equals) == 1 else 'are'} not cheaper."
    others = [row for row in usable if row is not chosen]
    if all(beats(chosen, row, metric) for row in others):
        second = max(others, key=lambda row: merit(row, metric))
        found = find_difference(chosen, second)
        assert found is not None
        return (
            f"{start}, resolvably better than every other strategy. The next is {second['strategy']} with "
            f"{_show(second, metric)} ({_show_span(found)})."
        )
    return f"{start}."


def _show_span(found: Mapping[str, Any]) -> str:
    """The interval of how much better the first one is, in accuracy or loss."""
    low, high = (-found["high"], -found["low"]) if found["mean"] < 0 else (found["low"], found["high"])
    return f"{found['level']:.0%} interval of the difference {low:+.3f} to {high:+.3f}"


def _article(metric: str) -> str:
    return "an" if metric == "accuracy" else "a"


def _show(row: Row, metric: str) -> str:
    value = row["quality"]["test"][metric]
    return quality(value, accuracy=True) if metric == "accuracy" else digits(value, 4, padded=True)


def _cheaper(chosen: Row, best: Row, usable: Sequence[Row]) -> str:
    """In what the recommended strategy is cheaper than the best one."""
    cost = choose_cost(usable)
    share = cost_of(chosen, cost) / max(cost_of(best, cost), 1e-9)
    small = parameters_of(chosen) / max(parameters_of(best), 1.0)
    if cost == "trained_parameters":
        return f"trains {percent(share)} of its parameters"
    if share <= 0.95 or small >= 1:
        return f"trains in {percent(share)} of the time"
    return f"takes about the same time and trains {percent(small)} of its parameters"


# ---- what makes it weaker


def list_warnings(usable: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    """What makes the verdict weaker than it looks, a sentence each."""
    found = []
    if about.get("same_part"):
        found.append(
            "There is no test part: the evaluation part chose the learning rates and judged the strategies as well, so their "
            "numbers are too good, most for those with the most rates. A test part (folder:DIR with DIR/test) would mend that."
        )
    seeds = len(about["seeds"])
    if seeds == 1:
        found.append(
            "With one seed, the comparison is one of trained models, not of strategies; more seeds (--seeds) would tell."
        )
    elif seeds <= _ROUGH:
        found.append(f"With {seeds} seeds, how much a strategy varies by chance is known only roughly.")
    for edge, way in (("lowest", "lower"), ("highest", "higher")):
        at = [row for row in usable if row["quality"]["chosen"]["edge"] == edge]
        rates = [f"{row['strategy']} ({row['quality']['chosen']['learning_rate']:g})" for row in at]
        if rates:
            found.append(f"The best learning rate is the {edge} of those tried for {join_words(rates, most=_MOST)}: a {way} one may be better.")  # fmt: skip
    return found


# ---- how it came about


def list_reasons(
    usable: Sequence[Row], best: Row, equals: Sequence[Row], chosen: Row | None, *, metric: str, cost: str
) -> list[str]:
    """How the choice was made and what was found, a sentence each."""
    highest, found = "highest accuracy" if metric == "accuracy" else "lowest loss", []
    if chosen is not None and len(usable) > 1:
        found.append(
            f"The best strategy is the one with the {highest}. Of it and its equals, which cannot be told apart from it, the "
            f"cheapest is recommended. Cost is {_COSTS[cost]}; of equal times, the fewest trained parameters decide."
        )
    others = [row for row in usable if row is not best]
    worse = [row for row in others if beats(best, row, metric)]
    if worse:
        words = [_less(best, row, metric) for row in sorted(worse, key=lambda row: -merit(row, metric))]
        found.append(f"Resolvably worse than {best['strategy']}: {join_words(words, most=_MOST)}.")
    if equals:
        near = sorted(equals, key=lambda row: -merit(row, metric))
        words = [f"{row['strategy']} ({_say_needed(best, row, metric)})" for row in near]
        found.append(f"Cannot be told apart from {best['strategy']}: {join_words(words, most=_MOST)}.")
    for row in others:
        if row not in worse and row not in equals:
            better = next(other for other in usable if beats(other, row, metric))
            found.append(
                f"{row['strategy']} cannot be told apart from {best['strategy']} either, but {better['strategy']} is resolvably "
                f"better than {row['strategy']}, so it does not count as an equal."
            )
    if chosen is not None:
        found += [*_list_shifted(usable, chosen, metric), *_list_calibration(usable, chosen)]
    return found


def _less(best: Row, row: Row, metric: str) -> str:
    found = find_difference(best, row)
    assert found is not None
    return f"{row['strategy']} by {show_difference(found['mean'], metric)} ({show_interval(found, metric)})"


def _say_needed(best: Row, row: Row, metric: str) -> str:
    """What it would take to resolve the difference between two strategies."""
    found = find_difference(best, row)
    assert found is not None
    if not found["mean"]:
        return (
            "no difference"
            if not found["differing"]
            else f"no difference on average; {count(found['differing'])} examples differ"
        )
    text = f"{show_difference(found['mean'], metric)} {'less' if metric == 'accuracy' else 'more'}"
    if found["examples_needed"] is not None:
        return f"{text}; about {count(found['examples_needed'])} examples would show it"
    return f"{text}; only more seeds could show it" if found["seeds"] > 1 else text


def _list_shifted(usable: Sequence[Row], chosen: Row, metric: str) -> list[str]:
    """Which strategies are better than the chosen one under the corruptions."""
    known = [row for row in usable if row is not chosen and find_difference(chosen, row, shifted=True) is not None]
    if not known:
        return []
    name, words = chosen["strategy"], []
    for row in known:
        found = find_difference(row, chosen, shifted=True)
        if found is not None and beats(row, chosen, metric, shifted=True):
            words.append(
                f"{row['strategy']} by {show_difference(found['mean'], metric)} ({show_interval(found, metric)})"
            )
    if not words:
        return [f"Under the corruptions, no strategy is resolvably better than {name}."]
    return [
        f"Under the corruptions, resolvably better than {name}: {join_words(words, most=_MOST)}. Where later images differ from "
        "those of training, that may weigh more."
    ]


def _list_calibration(usable: Sequence[Row], chosen: Row) -> list[str]:
    """How far the probabilities of the chosen strategy can be believed, beside the best calibrated one."""
    known = [row for row in usable if is_number(row["quality"]["test"].get("calibration_error"))]
    if chosen not in known:
        return []
    errors = {row["strategy"]: row["quality"]["test"]["calibration_error"] for row in known}
    least, mine = min(errors, key=errors.__getitem__), errors[chosen["strategy"]]
    text = f"The calibration error of {chosen['strategy']} is {mine:.3f}"
    if len(known) == 1:
        return [f"{text}."]
    if f"{errors[least]:.3f}" == f"{mine:.3f}":
        return [f"{text}, the least of all."]
    return [f"{text}; the least is that of {least}, {errors[least]:.3f}."]


def list_rates(rows: Sequence[Row]) -> list[str]:
    """Which learning rates diverged, in one sentence."""
    wrong: dict[float, list[str]] = {}
    for row in rows:
        for rate in (row.get("quality") or {}).get("rates") or ():
            if rate["status"] == "diverged":
                wrong.setdefault(rate["learning_rate"], []).append(row["strategy"])
    words = [f"at {rate:g} {join_words(names, most=_MOST)}" for rate, names in sorted(wrong.items())]
    return [f"Diverged, and so not chosen: {'; '.join(words)}."] if words else []
