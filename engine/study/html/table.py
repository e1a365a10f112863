"""The table of all runs, and how each of its columns is to be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.study.formatting import MEBI, NONE, count, digits, plural
from engine.study.html.markup import Child, Markup, join, tag
from engine.study.recommend import Recommendation

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: with its unit.
        meaning: how to read it, and what it does not say.
        value: of a row: a number or text to sort by, or None.
        text: of that value.
    """

    title: str
    meaning: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str]


def _of(*keys: str, divided: float = 1.0) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        found: Any = row
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found / divided if divided != 1.0 and found is not None else found

    return value


def _aligned(most: int) -> Callable[[Any], str]:
    return lambda value: digits(value, most, padded=True)


def _fixed(value: float) -> str:
    return f"{value:.3f}"


def _proof(row: Row) -> str | None:
    return {True: "kept", False: "BROKEN"}.get(row["freeze_verified"])


def _weights(row: Row) -> str | None:
    found = sorted({str(digest)[:8] for digest in row.get("weights_sha256") or ()})
    return None if not found else found[0] if len(found) == 1 else f"{len(found)} different"


COLUMNS = (
    Column("Strategy", "what trains; the strips above show it", _of("strategy"), str),
    Column(
        "Runner",
        "who trained: the engine; engine_cached, which computes what lies below the frost line once; Keras' own fit; or "
        "one of TF1's three ways of freezing. All see the same steps from the same weights",
        _of("runner"),
        str,
    ),
    Column("Accuracy", "of the evaluation examples, after the last step; higher is better", _of("eval_accuracy"), _fixed),
    Column("Eval. loss", "on the evaluation examples, after the last step", _of("eval_loss"), _aligned(4)),
    Column(
        "Job (s)",
        "from the first trace to the last step, median of the repeats: evaluations and filling the cache count, "
        "starting the process does not",
        _of("job_seconds"),
        _aligned(3),
    ),
    Column("Slowest (s)", "the slowest repeat's job", _of("job_seconds_spread", "most"), _aligned(3)),
    Column("To target (s)", "until the target accuracy was first seen in an evaluation", _of("time_to_target_seconds"), _aligned(3)),
    Column("Step (ms)", "one update, median; tracing and evaluations are left out", _of("step_ms", "median"), _aligned(3)),
    Column("p10 (ms)", "a tenth of the steps was faster", _of("step_ms", "p10"), _aligned(3)),
    Column("p90 (ms)", "a tenth of the steps was slower", _of("step_ms", "p90"), _aligned(3)),
    Column("Examples/s", "trained, evaluations left out", _of("examples_per_second"), _aligned(3)),
    Column("First (s)", "the first step, with its tracing", _of("first_step_seconds"), _aligned(3)),
    Column(
        "Peak (MiB)",
        "largest resident memory of the process: TensorFlow itself, some hundred MiB, and the data count",
        _of("peak_rss_bytes", divided=MEBI),
        count,
    ),
    Column("Slots (MiB)", "of the optimizer, for what trains", _of("slot_bytes", divided=MEBI), _aligned(3)),
    Column("Trained", "parameters, over all phases", _of("trained_parameters"), count),
    Column("Frozen", "parameters that never moved", _of("frozen_parameters"), count),
    Column("Backward ops", "operations of the backward pass in the graph: how much of it freezing spared", _of("backward_ops"), count),
    Column("GFLOP", "for an example, in a step as it runs; two for a multiply-add", _of("gflop_per_example"), _aligned(3)),
    Column("forward", "GFLOP of the forward pass", _of("gflop_forward"), _aligned(3)),
    Column("backward", "GFLOP of the backward pass", _of("gflop_backward"), _aligned(3)),
    Column(
        "Of GEMM (%)",
        "what a step reaches of this machine's speed in multiplying large matrices, measured in the same study",
        _of("gemm_share", divided=0.01),
        _aligned(3),
    ),
    Column("Train loss", "of the last step, before its update", _of("final_loss"), _aligned(4)),
    Column("Frozen norm", "of the tensors at the frost line on a fixed batch: equal wherever the line is", _of("frozen_output_norm"), _aligned(6)),
    Column("Cache (MiB)", "on disk", _of("cache", "bytes", divided=MEBI), _aligned(3)),
    Column("Fill (s)", "filling the cache, counted in the job", _of("cache", "seconds"), _aligned(3)),
    Column("Frozen bits", "kept: the digest of every frozen variable is what it was", _proof, str),
    Column("Weights", "first digits of the digest of the trained weights: equal ones are equal to the bit", _weights, str),
    Column("Repeats", "runs of which a row is the median", _of("repeats"), count),
    Column("Precision", "what was computed in", _of("precision"), str),
    Column("Micro-batches", "parts that a step was computed in", _of("micro_batches"), count),
)  # fmt: skip
_HINT = "A click on a column's name sorts by it, a second one turns the order."
_SAID_ONCE = ("Repeats", "Precision", "Micro-batches")


def split(rows: Sequence[Row]) -> tuple[list[Column], list[str]]:
    """The columns that say something, and what is the same in all rows, in words."""
    shown, same = [], []
    for column in COLUMNS:
        values = {column.value(row) for row in rows}
        if values <= {None}:
            continue
        if column.title in _SAID_ONCE and len(values) == 1:
            same.append(f"{column.title.lower()} {column.text(next(iter(values)))}")
        else:
            shown.append(column)
    return shown, same


def table(rows: Sequence[Row], advice: Recommendation) -> Markup:
    """All rows. Sorted by the page's script; without it, in the order of the study."""
    columns, same = split(rows)
    note = plural(len(rows), "row") + (f"; in all: {', '.join(same)}" if same else "") + "."
    numeric = {c.title: all(isinstance(c.value(r), (int, float, type(None))) for r in rows) for c in columns}
    heads = []
    for column in columns:
        button = tag("button", column.title, type="button", title=column.meaning)
        heads.append(tag("th", button, scope="col", data_kind="number" if numeric[column.title] else "text"))
    body = [_row(row, columns, numeric, advice) for row in rows]
    whole = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), id="rows", aria_label="All runs")
    region = tag("div", whole, class_="scroll", role="region", aria_label="All runs; scrolls sideways", tabindex=0)
    return join([tag("p", note, tag("span", " " + _HINT, class_="script"), class_="note"), region])


def _row(row: Row, columns: Sequence[Column], numeric: Mapping[str, bool], advice: Recommendation) -> Markup:
    chosen = advice.chosen is not None and (row["strategy"], row["runner"]) == (
        advice.chosen.strategy,
        advice.chosen.runner,
    )
    cells = []
    for column in columns:
        value = column.value(row)
        content: list[Child] = [NONE if value is None else column.text(value)]
        if column.title == "Runner" and row["failed"]:
            content.append(tag("strong", "failed", class_="bad"))
        if column.title == "Runner" and chosen:
            content.append(tag("strong", "recommended", class_="good"))
        sorted_by = None if value is None else repr(value) if numeric[column.title] else value
        if column.title == "Strategy":
            cells.append(tag("th", tag("span", content), scope="row", data_v=sorted_by))
        else:
            style = ("n " if numeric[column.title] else "") + ("bad" if value == "BROKEN" else "")
            cells.append(tag("td", content, class_=style.strip() or None, data_v=sorted_by))
    return tag("tr", *cells, class_="failed" if row["failed"] else "chosen" if chosen else None)


def meanings(rows: Sequence[Row]) -> Markup:
    """How to read each column that is there."""
    shown, _ = split(rows)
    return tag("dl", *(tag("div", tag("dt", c.title), tag("dd", c.meaning)) for c in shown), class_="meanings")
