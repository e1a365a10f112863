"""The table of all runs, and the meaning of each of its columns."""

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
    """A column of the table: its heading and its meaning; ``value`` gives what rows are sorted by, ``text`` formats it."""

    title: str
    meaning: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str]


def get(*keys: str, divided: float = 1.0) -> Callable[[Row], Any]:
    """What a column reads: the value under these keys, or None where one is missing."""

    def value(row: Row) -> Any:
        found: Any = row
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found / divided if divided != 1.0 and found is not None else found

    return value


def aligned(most: int) -> Callable[[Any], str]:
    """Texts of numbers with so many digits, zeros included."""
    return lambda value: digits(value, most, padded=True)


def fixed(value: float) -> str:
    """A number with three decimals."""
    return f"{value:.3f}"


def _proof(row: Row) -> str | None:
    return {True: "kept", False: "BROKEN"}.get(row["freeze_verified"])


def _weights(row: Row) -> str | None:
    found = sorted({str(digest)[:8] for digest in row.get("weights_sha256") or ()})
    return None if not found else found[0] if len(found) == 1 else f"{len(found)} different"


COLUMNS = (
    Column("Strategy", "the name of what is trained; the strips above show it", get("strategy"), str),
    Column(
        "Runner",
        "what did the training: the engine; engine_cached, which computes what lies below the frost line only once; Keras' "
        "own fit; or one of the three ways to freeze in TF1. All take the same steps from the same weights",
        get("runner"),
        str,
    ),
    Column("Accuracy", "the accuracy on the evaluation examples after the last step; higher is better", get("eval_accuracy"), fixed),
    Column("Eval. loss", "the loss on the evaluation examples after the last step", get("eval_loss"), aligned(4)),
    Column(
        "Job (s)",
        "the time from the first trace to the last step, the median of the repeats; evaluations and filling the cache "
        "count, starting the process does not",
        get("job_seconds"),
        aligned(3),
    ),
    Column("Slowest (s)", "the job of the slowest repeat", get("job_seconds_spread", "most"), aligned(3)),
    Column("To target (s)", "the time until an evaluation first reached the target accuracy", get("time_to_target_seconds"), aligned(3)),
    Column("Step (ms)", "the median time of a step (one update), without tracing and evaluations", get("step_ms", "median"), aligned(3)),
    Column("p10 (ms)", "a tenth of the steps were faster", get("step_ms", "p10"), aligned(3)),
    Column("p90 (ms)", "a tenth of the steps were slower", get("step_ms", "p90"), aligned(3)),
    Column("Examples/s", "the examples trained per second, without evaluations", get("examples_per_second"), aligned(3)),
    Column("First (s)", "the time of the first step, including its tracing", get("first_step_seconds"), aligned(3)),
    Column(
        "Peak (MiB)",
        "the peak resident memory of the process, including the data and TensorFlow itself (some hundred MiB)",
        get("peak_rss_bytes", divided=MEBI),
        count,
    ),
    Column("Slots (MiB)", "the size of the optimizer's slots, which only trained variables have", get("slot_bytes", divided=MEBI), aligned(3)),
    Column("Trained", "the parameters trained in any phase", get("trained_parameters"), count),
    Column("Frozen", "the parameters that never changed", get("frozen_parameters"), count),
    Column("Backward ops", "the number of operations in the graph of the backward pass; freezing lower layers saves many", get("backward_ops"), count),
    Column("GFLOP", "the arithmetic per example in a step, where a multiply-add counts as two operations", get("gflop_per_example"), aligned(3)),
    Column("forward", "GFLOP of the forward pass", get("gflop_forward"), aligned(3)),
    Column("backward", "GFLOP of the backward pass", get("gflop_backward"), aligned(3)),
    Column(
        "Of GEMM (%)",
        "the speed of a step relative to the speed at which this machine multiplies large matrices, measured in this study",
        get("gemm_share", divided=0.01),
        aligned(3),
    ),
    Column("Train loss", "the loss of the last step, before its update", get("final_loss"), aligned(4)),
    Column("Frozen norm", "the norm of the tensors at the frost line on a fixed batch; equal if the line is at the same place", get("frozen_output_norm"), aligned(6)),
    Column("Cache (MiB)", "the size of the cache on disk", get("cache", "bytes", divided=MEBI), aligned(3)),
    Column("Fill (s)", "the time to fill the cache, which counts towards the job", get("cache", "seconds"), aligned(3)),
    Column("Frozen bits", "kept if the digest of every frozen variable is what it was before training", _proof, str),
    Column("Weights", "the first digits of the digest of the trained weights; equal digests mean bit-identical weights", _weights, str),
    Column("Repeats", "the number of runs that a row summarizes", get("repeats"), count),
    Column("Precision", "the precision of the computation", get("precision"), str),
    Column("Micro-batches", "the number of micro-batches in which a step was computed", get("micro_batches"), count),
)  # fmt: skip
HINT = "Click the name of a column to sort by it; click again to reverse the order."
_SHARED = ("Repeats", "Precision", "Micro-batches")


def choose_columns(rows: Sequence[Row]) -> tuple[list[Column], list[str]]:
    """The columns that have a value in any row, and texts for what is the same in all rows."""
    shown, same = [], []
    for column in COLUMNS:
        values = {column.value(row) for row in rows}
        if values <= {None}:
            continue
        if column.title in _SHARED and len(values) == 1:
            same.append(f"{column.title.lower()} {column.text(next(iter(values)))}")
        else:
            shown.append(column)
    return shown, same


def build_table(rows: Sequence[Row], advice: Recommendation) -> Markup:
    """Builds the table of all rows, in the order of the study; the script of the page can sort it."""
    columns, same = choose_columns(rows)
    note = plural(len(rows), "row") + (f"; in all of them {', '.join(same)}" if same else "") + "."
    best = advice.chosen

    def mark(row: Row) -> tuple[str | None, Mapping[str, Child]]:
        chosen = best is not None and (row["strategy"], row["runner"]) == (best.strategy, best.runner)
        words = [tag("strong", "failed", class_="bad")] if row["failed"] else []
        words += [tag("strong", "recommended", class_="good")] if chosen else []
        return "failed" if row["failed"] else "chosen" if chosen else None, {"Runner": words}

    region = draw_table(rows, columns, key="rows", label="All runs", mark=mark)
    return join([tag("p", note, tag("span", f" {HINT}", class_="script"), class_="note"), region])


def draw_table(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    key: str,
    label: str,
    mark: Callable[[Row], tuple[str | None, Mapping[str, Child]]],
) -> Markup:
    """Draws rows as a table that the script of the page can sort and that scrolls sideways.

    ``key`` is its id, ``label`` its name for screen readers; ``mark`` gives the class of a row and what follows the content
    of a cell, by the title of its column. The first column names the row.
    """
    numeric = {c.title: all(isinstance(c.value(r), (int, float, type(None))) for r in rows) for c in columns}
    heads = []
    for column in columns:
        button = tag("button", column.title, type="button", title=column.meaning)
        heads.append(tag("th", button, scope="col", data_kind="number" if numeric[column.title] else "text"))
    body = [_row(row, columns, numeric, mark) for row in rows]
    whole = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), id=key, aria_label=label)
    return tag("div", whole, class_="scroll", role="region", aria_label=f"{label}; scrolls sideways", tabindex=0)


def _row(
    row: Row,
    columns: Sequence[Column],
    numeric: Mapping[str, bool],
    mark: Callable[[Row], tuple[str | None, Mapping[str, Child]]],
) -> Markup:
    kind, following = mark(row)
    cells = []
    for column in columns:
        value = column.value(row)
        content: list[Child] = [NONE if value is None else column.text(value), following.get(column.title)]
        sorted_by = None if value is None else repr(value) if numeric[column.title] else value
        if column is columns[0]:
            cells.append(tag("th", tag("span", content), scope="row", data_v=sorted_by))
        else:
            style = ("n " if numeric[column.title] else "") + ("bad" if value == "BROKEN" else "")
            cells.append(tag("td", content, class_=style.strip() or None, data_v=sorted_by))
    return tag("tr", *cells, class_=kind)


def explain_columns(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> Markup:
    """Explains each column of the table of runs, or the given ones."""
    shown = choose_columns(rows)[0] if columns is None else columns
    return tag("dl", *(tag("div", tag("dt", c.title), tag("dd", c.meaning)) for c in shown), class_="meanings")
