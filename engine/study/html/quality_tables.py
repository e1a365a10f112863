"""The tables of quality mode: each strategy at its best, pairs of strategies, classes and corruptions by colour."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from engine.selection.layer_groups import elide_middle
from engine.study.formatting import NONE, count, digits
from engine.study.html.markup import Child, Markup, join, tag
from engine.study.html.quality_view import View
from engine.study.html.table import HINT, Column, aligned, draw_table, fixed, get
from engine.study.quality.rows import Row, find_difference, find_fault, is_number, merit

MOST_CLASSES = 30  # beyond, a table by class shows the least, the middle and the largest accuracy
_MOST_PAIRS = 120
_FIXED = "\u00a0"  # a space at which no line breaks
_STEPS = 9  # shades of a table by colour


# ---- each strategy at its best


def _status(row: Row) -> str:
    return re.split(r"[:(]", find_fault(row) or "judged")[0].strip().replace(" ", _FIXED)


def _rate(row: Row) -> float | None:
    chosen = (row.get("quality") or {}).get("chosen")
    return chosen["learning_rate"] if chosen else None


def _at_best(key: str) -> Callable[[Row], Any]:
    """A number of the evaluation part at the chosen rate."""

    def value(row: Row) -> Any:
        rates = (row.get("quality") or {}).get("rates") or ()
        return next((rate[key] for rate in rates if rate["learning_rate"] == _rate(row)), None)

    return value


def _phases(row: Row) -> str | None:
    """What each phase trains and for how long, such as "@head (32 steps) then @all (32 steps)"."""
    settings = (row.get("quality") or {}).get("settings") or {}
    texts = [f"{phase['train']} ({count(phase['steps'])} steps)" for phase in settings.get("phases") or ()]
    return " then ".join(text.replace(" ", _FIXED) for text in texts) or None


def _percentage(value: float) -> str:
    return f"{100 * value:.1f}"


BEST_COLUMNS = (
    Column("Strategy", "the name of what is trained; the strips below show it", get("strategy"), str),
    Column("Accuracy", "the accuracy on the examples that judge, mean over the seeds, at the chosen learning rate", get("quality", "test", "accuracy"), fixed),
    Column("Loss", "the loss on the same examples", get("quality", "test", "loss"), aligned(4)),
    Column(
        "ECE",
        "the expected calibration error: how far the probability of the answer lies from how often it is right, in 15 bins of equal width",
        get("quality", "test", "calibration_error"),
        fixed,
    ),
    Column("Adaptive ECE", "the same in bins with equally many examples", get("quality", "test", "adaptive_calibration_error"), fixed),
    Column("Shifted acc.", "the mean accuracy on the same examples under the corruptions", get("quality", "shifted", "mean", "accuracy"), fixed),
    Column("Shifted loss", "the mean loss under the corruptions", get("quality", "shifted", "mean", "loss"), aligned(4)),
    Column("Shifted ECE", "the mean calibration error under the corruptions", get("quality", "shifted", "mean", "calibration_error"), fixed),
    Column("Rate", "the learning rate that was chosen on the evaluation part", _rate, lambda value: f"{value:g}"),
    Column("Eval. acc.", "the accuracy on the evaluation part at that rate, which chose it", _at_best("eval_accuracy"), fixed),
    Column("Eval. loss", "the loss on the evaluation part at that rate", _at_best("eval_loss"), aligned(4)),
    Column("Steps", "the steps of training; early stop may have ended it before", get("quality", "settings", "steps"), count),
    Column("Phases", "the filter of each phase, and for how many steps it trains", _phases, str),
    Column("Optimizer", "the optimizer", get("quality", "settings", "optimizer"), str),
    Column("Schedule", "how the learning rate changes over the steps", get("quality", "settings", "schedule"), str),
    Column("Adapters", "the adapters that were attached (--adapt)", get("quality", "settings", "adapt"), str),
    Column("Trained", "the parameters trained in any phase", get("trained_parameters"), count),
    Column("Train (s)", "training at the chosen rate, mean over the seeds, in the process of this study, which shares features and traces", get("quality", "seconds"), aligned(3)),
    Column("Search (s)", "all trials of the strategy, its learning rates and seeds", get("quality", "search_seconds"), aligned(3)),
    Column("Alone (s)", "the job of its fastest engine run, in a process of its own (mode both)", get("quality", "cost", "job_seconds"), aligned(3)),
    Column("Peak (MiB)", "the peak resident memory of that run", get("quality", "cost", "peak_rss_bytes", divided=2**20), count),
    Column("Status", "judged, or why the strategy cannot be recommended", _status, str),
)  # fmt: skip


def choose_best_columns(view: View) -> list[Column]:
    """The columns in which any strategy has a value."""
    return [c for c in BEST_COLUMNS if any(c.value(row) is not None for row in view.rows)]


def build_best(view: View) -> Markup:
    """Builds the table of each strategy at its best, which the script of the page can sort."""

    def mark(row: Row) -> tuple[str | None, Mapping[str, Child]]:
        if find_fault(row):
            return "failed", {}
        if row["strategy"] == view.recommended:
            return "chosen", {"Strategy": tag("strong", "recommended", class_="good")}
        return None, {}

    region = draw_table(view.rows, choose_best_columns(view), key="best", label="Each strategy at its best", mark=mark)
    return join([tag("p", HINT, class_="note script"), region])


# ---- pairs


@dataclass(frozen=True)
class Pairs:
    """The pairs that are shown, and how many there are."""

    rows: tuple[Row, ...]
    known: int


def list_pairs(view: View) -> Pairs:
    """Each pair once, the better strategy first; of very many, those with the recommended or the best strategy."""
    order = sorted(view.judged, key=lambda row: -merit(row, view.metric))
    found = []
    for one, other in combinations(order, 2):
        difference = find_difference(one, other)
        if difference is not None:
            names = {"first": one["strategy"], "second": other["strategy"]}
            found.append(names | {"clean": difference, "shifted": difference["shifted"]})
    shown = found
    if len(found) > _MOST_PAIRS:
        main = {view.recommended, view.best}
        shown = [pair for pair in found if main & {pair["first"], pair["second"]}]
    return Pairs(tuple(shown), len(found))


def build_pairs(view: View, pairs: Pairs) -> Markup:
    """Builds the table of pairs."""
    points, scale = ("points", 100.0) if view.accuracy else ("loss", 1.0)

    def difference(key: str) -> Callable[[Row], Any]:
        return lambda row: None if row[key] is None else scale * row[key]["mean"]

    def interval(key: str) -> Callable[[Row], Any]:
        def value(row: Row) -> str | None:
            found = row[key]
            return (
                None
                if found is None
                else _FIXED.join([_signed(scale * found["low"]), "to", _signed(scale * found["high"])])
            )

        return value

    def _signed(value: float) -> str:
        return f"{value:+.1f}" if view.accuracy else f"{value:+.3g}"

    def resolved(key: str) -> Callable[[Row], Any]:
        return lambda row: None if row[key] is None else "yes" if row[key]["resolved"] else "no"

    columns = [
        Column("Pair", "the better strategy, minus the other one", lambda row: f"{row['first']} −{_FIXED}{row['second']}", str),
        Column(f"Difference ({points})", "the difference of the means over examples and seeds", difference("clean"), _signed),
        Column("Interval", "where the difference lies with the probability of the interval, by a paired bootstrap", interval("clean"), str),
        Column("Resolved", "whether these examples and seeds show that there is a difference", resolved("clean"), str),
        Column("Examples needed", "about how many examples would show a difference as large as this; none where no number would", get("clean", "examples_needed"), count),
        Column("Differing", "the examples on which the two differ with any seed", get("clean", "differing"), count),
    ]  # fmt: skip
    if any(row["shifted"] is not None for row in pairs.rows):
        columns += [
            Column(f"Shifted ({points})", "the difference under the corruptions", difference("shifted"), _signed),
            Column("Shifted interval", "its interval", interval("shifted"), str),
            Column("Shifted resolved", "whether that shows a difference", resolved("shifted"), str),
        ]

    def mark(row: Row) -> tuple[str | None, Mapping[str, Child]]:
        return "chosen" if {row["first"], row["second"]} == {view.recommended, view.best} else None, {}

    return draw_table(pairs.rows, columns, key="pairs", label="Pairs of strategies", mark=mark)


# ---- tables by colour


def build_classes(view: View) -> Markup | None:
    """Builds the table of accuracies by class, or of their least, middle and largest where there are many classes."""
    found = {
        row["strategy"]: {each["name"]: each for each in row["quality"]["test"].get("classes") or ()}
        for row in view.judged
    }
    names = list(dict.fromkeys(name for classes in found.values() for name in classes))
    if not names or all(each["accuracy"] is None for classes in found.values() for each in classes.values()):
        return None
    if len(names) <= MOST_CLASSES:
        sizes = {name: next(c[name]["examples"] for c in found.values() if name in c) for name in names}
        heads = [(name, f"{name}: {count(sizes[name])} examples") for name in names]
        rows = {
            strategy: [(classes.get(name) or {}).get("accuracy") for name in names]
            for strategy, classes in found.items()
        }
        return _draw_heat(view, heads, rows, label="Accuracy by class")
    heads = [(word, f"the {word} accuracy of a class") for word in ("least", "median", "largest")]
    rows, worst = {}, {}
    for strategy, classes in found.items():
        known = [(each["accuracy"], name) for name, each in classes.items() if is_number(each["accuracy"])]
        known.sort(key=lambda pair: pair[0])
        values = [value for value, _ in known]
        rows[strategy] = [values[0], statistics.median(values), values[-1]] if values else [None] * 3
        worst[strategy] = _list_names([name for value, name in known if value == values[0]])
    return _draw_heat(view, heads, rows, label="Accuracy by class", last=("least for", worst))


def _list_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(elide_middle(name, 24) for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def build_corruptions(view: View) -> Markup | None:
    """Builds the table of accuracies (or losses) under each corruption."""
    found = {
        row["strategy"]: {
            f"{each['kind']}:{each['strength']}": each[view.metric] for each in row["quality"]["shifted"]["each"]
        }
        for row in view.judged
        if row["quality"].get("shifted")
    }
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    if not names:
        return None
    heads = [(name, f"{view.metric} under {name}") for name in names]
    rows = {strategy: [values.get(name) for name in names] for strategy, values in found.items()}
    return _draw_heat(view, heads, rows, label=f"{view.metric.capitalize()} by corruption", metric=view.metric)


def _draw_heat(
    view: View, heads: Sequence[tuple[str, str]], rows: Mapping[str, Sequence[float | None]], *, label: str,
    metric: str = "accuracy", last: tuple[str, Mapping[str, str]] | None = None,
) -> Markup:  # fmt: skip
    """Draws numbers on a ground that is the stronger, the better they are within this table."""
    known = [value for values in rows.values() for value in values if is_number(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)

    def shade(value: float) -> int:
        part = (value - low) / (high - low) if high > low else 0.5
        return round((_STEPS - 1) * (part if metric == "accuracy" else 1 - part))

    def cell(value: float | None) -> Markup:
        if not is_number(value):
            return tag("td", NONE, class_="n")
        text = _percentage(value) if metric == "accuracy" else digits(value, 3, padded=True)
        return tag("td", text, class_=f"n h{shade(value)}")

    top = [tag("th", "Strategy", scope="col")]
    top += [tag("th", elide_middle(name, 16), scope="col", title=words) for name, words in heads]
    top += [tag("th", last[0], scope="col", class_="words")] if last else []
    body = []
    for name, values in rows.items():
        style = "chosen" if name == view.recommended else None
        end = [tag("td", last[1].get(name, ""))] if last else []
        body.append(
            tag("tr", tag("th", tag("span", name), scope="row"), *(cell(value) for value in values), *end, class_=style)
        )
    whole = tag("table", tag("thead", tag("tr", *top)), tag("tbody", *body), class_="heat", aria_label=label)
    return tag(
        "div",
        whole,
        class_="scroll fit",
        role="region",
        aria_label=f"{label}; scrolls sideways",
        tabindex=0,
    )
