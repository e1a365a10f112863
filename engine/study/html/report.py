"""report.html: a study of freezing strategies as one file that helps a person decide.

The file is self-contained: it needs no network, no fonts and no library. It also holds the study as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from engine.errors import InputError
from engine.files import PathLike, write_bytes
from engine.sizes import format_bytes
from engine.study.formatting import count, digits, duration, percent, plural, quality
from engine.study.html import charts, strip, table
from engine.study.html import quality as quality_sections
from engine.study.html.markup import Child, Markup, data, tag
from engine.study.html.quality import draw_section
from engine.study.html.quality_view import View, open_view
from engine.study.quality.rows import leave_out_quality
from engine.study.recommend import Recommendation, by_accuracy, recommend
from engine.study.results import FORMAT
from engine.text import join_words

_DIGITS = 7  # significant digits of the numbers in the file; a float32 has no more


class ReportError(InputError):
    """A study in another format."""


def write_report(path: PathLike, study: Mapping[str, Any]) -> None:
    """Writes the report of a study, given as the content of study.json, into an HTML file, atomically.

    Numbers that are not finite count as missing. Raises ReportError if the study has another format.
    """
    write_bytes(path, build_page(study).encode())


def build_page(study: Mapping[str, Any]) -> str:
    """Builds the text of the report; raises as ``write_report``."""
    if study.get("format") != FORMAT:
        raise ReportError(
            f"study['format']={study.get('format')!r}: expected format {FORMAT}; another version of Frostline wrote this study"
        )
    study = _change_floats(study, lambda number: number if math.isfinite(number) else None)
    view, costs = open_view(study), leave_out_quality(study)
    advice = recommend(costs)
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"Which variables should I train? {study['job']['model']} on {study['job']['data']}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "To the table of all runs", href="#strategies" if view and view.rows else "#runs", class_="skip"),
        tag("header", _question(study, view)),
        tag("main", *_middle(study, costs, advice, view), _notes(study), _machine(study, view)),
        tag("script", data(_change_floats(study, lambda number: float(f"{number:.{_DIGITS}g}"))), type="application/json", id="study"),
        tag("script", Markup(script)),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _file(name: str) -> str:
    return resources.files("engine.study.html").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _change_floats(value: Any, change: Callable[[float], float | None]) -> Any:
    if isinstance(value, float):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _change_floats(item, change) for key, item in value.items()}
    return [_change_floats(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _middle(
    study: Mapping[str, Any], costs: Mapping[str, Any], advice: Recommendation, view: View | None
) -> list[Markup]:
    """The answer, pictures and tables of the modes that the study has."""
    if view is None:
        return [_answer(costs, advice), *_drawings(costs, advice), _runs(costs, advice)]
    found = [
        quality_sections.draw_verdict(view, study["parameters"]),
        *quality_sections.draw_sections(view),
        *_strips(study),
    ]
    return [*found, _runs(costs, advice)] if costs["results"] else found


# ---- the question and the answer


def _question(study: Mapping[str, Any], view: View | None) -> list[Child]:
    job = study["job"]
    shape = " × ".join(str(size) for size in job["image_shape"])
    much = f"{count(job['steps'])} steps of {count(job['batch_size'])} examples"
    if job["epochs"] is not None:
        much += f" ({digits(job['epochs'])} epoch{'' if job['epochs'] == 1 else 's'})"
    return [
        tag("p", "Frostline: freezing strategies side by side", class_="over"),
        tag("h1", "Which variables should I train?"),
        tag(
            "p", "For ", tag("strong", job["model"]), f" ({count(study['parameters'])} parameters) on ",
            tag("strong", job["data"]),
            f" ({count(job['train_examples'])} images of {shape} in {count(job['classes'])} classes), "
            f"measured on this machine ({study['machine']['cpu']}, {count(study['machine']['cores'])} cores). ",
            quality_sections.describe_procedure(view) if view else f"Every strategy trained for {much} with {job['optimizer']} at a "
            f"learning rate of {digits(job['learning_rate'])}, from the same weights and on the same data in the same order.",
        ),
    ]  # fmt: skip


def _answer(study: Mapping[str, Any], advice: Recommendation) -> Markup:
    inside: list[Child] = [tag("p", advice.sentence, class_="sentence")]
    if advice.chosen is not None:
        inside += [_tiles(study, advice), tag("p", _finetune_flag(study, advice), class_="what")]
    how = tag("div", tag("h3", "How this was chosen"), tag("ul", *(tag("li", r) for r in advice.reasons)), class_="how")
    return tag(
        "section", tag("h2", "Recommendation", id="answer"), *inside, how, aria_labelledby="answer", class_="answer"
    )


def _tiles(study: Mapping[str, Any], advice: Recommendation) -> Markup:
    chosen, reference, accuracy = advice.chosen, advice.reference, by_accuracy(study)
    assert chosen is not None
    what = "accuracy" if accuracy else "loss"
    before = quality(study["baseline"][f"eval_{what}"], accuracy=accuracy)
    tiles = [(what, quality(chosen.quality, accuracy=accuracy), f"{before} before")]
    other = reference if reference is not None and reference != chosen else None
    tiles.append(("time", duration(chosen.seconds), f"{other.strategy}: {duration(other.seconds)}" if other else ""))
    if chosen.memory is not None:
        beside = f"{other.strategy}: {format_bytes(int(other.memory))}" if other and other.memory is not None else ""
        tiles.append(("peak memory", format_bytes(int(chosen.memory)), beside))
    share = chosen.parameters / max(study["parameters"], 1)
    tiles.append(("parameters trained", count(chosen.parameters), f"{percent(share)} of the model"))
    return tag("dl", *(tag("div", tag("dt", a), tag("dd", tag("b", b), tag("span", c))) for a, b, c in tiles), class_="tiles")  # fmt: skip


def _finetune_flag(study: Mapping[str, Any], advice: Recommendation) -> list[Child]:
    """The flag of finetune that trains the recommended strategy."""
    assert advice.chosen is not None
    strategy = next((s for s in study["strategies"] if s["name"] == advice.chosen.strategy), None)
    if strategy is None:
        return []
    words = {phase["train"] for phase in strategy["phases"]}
    if len(words) != 1:
        return [f"This strategy has {len(strategy['phases'])} phases; the run is by {advice.chosen.runner}."]
    flag = tag("code", " ".join([f"--train={shlex.quote(words.pop())}", *strategy.get("flags", ())]))
    return ["In finetune, use ", flag, f". The run is by {advice.chosen.runner}."]


# ---- drawings


def _drawings(study: Mapping[str, Any], advice: Recommendation) -> list[Markup]:
    what = "Accuracy" if by_accuracy(study) else "Loss"
    found = []
    costs = [chart for cost in ("job_seconds", "peak_rss_bytes") if (chart := charts.draw_costs(study, advice, cost))]
    if costs:
        text = (
            "Each mark is a run; a thin line connects the runs of one strategy. Large marks represent their strategies. "
            "The dashed staircase is the efficient frontier: on it, nothing cheaper is better."
            + (" The ring marks the recommended run." if advice.chosen else "")
        )
        found.append(draw_section("costs", f"{what} against time and memory", charts.draw_runner_key(study), tag("div", *costs, class_="pair"), tag("p", text, class_="note")))  # fmt: skip
    learning = [chart for over in ("seconds", "step") if (chart := charts.draw_curves(study, advice, over))]
    if learning:
        text = "The first repeat of the run that represents each strategy. Here marks and dashes distinguish strategies; thin lines are further strategies."
        found.append(draw_section("learning", "Learning curves", tag("div", *learning, class_="pair"), tag("p", text, class_="note")))  # fmt: skip
    return [*found, *_strips(study)]


def _strips(study: Mapping[str, Any]) -> list[Markup]:
    drawn = strip.draw_strip(study)
    if drawn is None:
        return []
    text = (
        "The model from the images (left) to the loss (right). Neighbouring parts that all strategies treat alike are "
        "drawn as one."
    )
    return [
        draw_section(
            "picture", "What each strategy trains", strip.draw_strip_key(), drawn, tag("p", text, class_="note")
        )
    ]


# ---- tables and notes


def _runs(study: Mapping[str, Any], advice: Recommendation) -> Markup:
    rows = study["results"]
    title = "All runs" if "quality" not in study else "Cost: all runs"
    return draw_section("runs", title, table.build_table(rows, advice) if rows else tag("p", "There are no runs."))


def _notes(study: Mapping[str, Any]) -> list[Child]:
    inside: list[Child] = []
    if study["notes"]:
        inside.append(tag("ul", *(tag("li", note) for note in study["notes"])))
    broken = [row for row in study["results"] if row["freeze_verified"] is False]
    if broken:
        lines = (tag("li", tag("strong", r["strategy"]), _by(r)) for r in broken)
        inside += [tag("h3", "Runs that changed frozen variables"), tag("ul", *lines)]
    failed = [row for row in study["results"] if row["failed"]]
    if failed:
        inside.append(tag("h3", "Runs that failed"))
        for row in failed:
            inside += [tag("p", tag("strong", row["strategy"]), _by(row), "; the last lines of its output:"), tag("pre", row.get("reason") or "none", tabindex=0)]  # fmt: skip
    if study["left_out"]:
        lines = (tag("li", tag("strong", r["strategy"]), " by ", tag("strong", r["runner"]), f": {r['reason']}") for r in study["left_out"])  # fmt: skip
        inside += [tag("h3", "Left out"), tag("ul", *lines)]
    if not inside:
        inside.append(tag("p", "None." if "quality" in study else "None. All runs finished, and they agree."))
    found: list[Child] = [draw_section("notes", "Notes", *inside)]
    rows = leave_out_quality(study)["results"]
    if rows:
        found.append(draw_section("columns", "How to read the columns", table.explain_columns(rows)))
    return found


def _by(row: Mapping[str, Any]) -> list[Child]:
    """What did a run, after its strategy."""
    return [" in quality mode"] if row["runner"] == "quality" else [" by ", tag("strong", row["runner"])]


def _machine(study: Mapping[str, Any], view: View | None) -> Markup:
    costs = view is None or leave_out_quality(study)["results"]
    machine, job = study["machine"], study["job"]
    repeats = plural(job["repeats"], "repeat")
    gemm = (machine.get("gemm_gflops") or {}).get("p90")
    facts = [
        ("Processor", f"{machine['cpu']}, {count(machine['cores'])} cores"),
        ("Memory", format_bytes(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown"),
        ("System", machine["system"]),
        ("Matrix product", f"{digits(gemm)} GFLOP/s in float32" if gemm else "not measured"),
        ("Versions", join_words((f"{name} {version}" for name, version in study["versions"].items()), most=20)),
        *(
            [("Seed and repeats", f"{job['seed']}; {repeats} of each run, every one in a separate process")]
            if costs
            else []
        ),
        *(quality_sections.list_facts(view) if view else []),
    ]
    fact_list = tag("dl", *(tag("div", tag("dt", a), tag("dd", b)) for a, b in facts), class_="facts")
    again = [tag("h3", "To repeat the study"), tag("pre", tag("code", job["command"]), tabindex=0)]
    where = f"All numbers, rounded to {_DIGITS} digits, are in this file as JSON: in the element with the id study."
    return draw_section("machine", "Machine, versions, command", fact_list, *again, tag("p", where, class_="note"))
