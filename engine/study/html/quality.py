"""The sections of a report on quality mode: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.sizes import format_bytes
from engine.study.formatting import count, duration, percent, plural
from engine.study.html import quality_charts, quality_tables, table
from engine.study.html.markup import Child, Markup, tag
from engine.study.html.quality_view import View
from engine.study.quality.rows import Row, is_number, parameters_of, seconds_of
from engine.text import join_words

_WAITING = "No verdict yet: the strategies have not all been judged. The same command with the same --out goes on."


def draw_section(key: str, title: str, *inside: Child) -> Markup:
    """A section of the page under a heading."""
    return tag("section", tag("h2", title, id=key), *inside, aria_labelledby=key)


def describe_procedure(view: View) -> list[Child]:
    """How the numbers came about, for the head of the page."""
    about = view.about
    tried = "a grid of learning rates around a range test" if about["rates"] == "auto" else (
        f"the learning rates {join_words((f'{rate:g}' for rate in about['rates']), most=8)}"
    )  # fmt: skip
    halving = ", by successive halving" if about["search"] == "halving" else ""
    seeds = f"seed{'' if len(about['seeds']) == 1 else 's'} {join_words(about['seeds'], most=8)}"
    judged = f"the {about['part']} part judged the strategy at this rate, on {plural(about['examples'], 'example')}"
    if about["same_part"]:
        judged = f"it also judged the strategy at this rate, on its {plural(about['examples'], 'example')}, for want of a test part"
    return [f"Every strategy trained at {tried}{halving}, with {seeds}. The evaluation part chose the rate; {judged}."]


def list_facts(view: View) -> list[tuple[str, str]]:
    """How long quality mode took, and how its trials ran."""
    spent = view.about.get("seconds") or {}
    parts = (("search", "the search"), ("judging", "judging"))
    took = [f"{words} took {duration(spent[key])}" for key, words in parts if is_number(spent.get(key))]
    seeds = f"seeds {join_words(view.about['seeds'], most=8)}"
    return [("Quality mode", "; ".join([seeds, "all trials in one process", *took]))]


def draw_verdict(view: View, parameters: int) -> Markup:
    """The recommendation, with what weakens it and how it came about."""
    verdict = view.about.get("verdict")
    inside: list[Child] = [tag("p", verdict["sentence"] if verdict else _WAITING, class_="sentence")]
    if verdict:
        inside += [tag("p", warning, class_="warning") for warning in verdict["warnings"]]
        chosen = view.find(view.recommended)
        if chosen is not None:
            inside += [_draw_tiles(view, chosen, parameters), *_draw_command(chosen)]
        reasons = (tag("li", reason) for reason in verdict["reasons"])
        inside.append(tag("div", tag("h3", "How this was chosen"), tag("ul", *reasons), class_="how"))
    heading = tag("h2", "Recommendation", id="answer")
    return tag("section", heading, *inside, aria_labelledby="answer", class_="answer")


def _draw_tiles(view: View, chosen: Row, parameters: int) -> Markup:
    best = view.find(view.best)
    other = best if best is not None and best is not chosen else None

    def beside(text: str | None) -> str:
        return f"{other['strategy']}: {text}" if other is not None and text else ""

    found, compared = chosen["quality"], other["quality"] if other is not None else {}
    tiles = [(f"{view.part} {view.metric}", view.show(found["test"][view.metric]), beside(view.show(compared["test"][view.metric]) if compared else None))]  # fmt: skip
    if found.get("shifted"):
        mean, theirs = found["shifted"]["mean"], (compared.get("shifted") or {}).get("mean")
        tiles.append((f"{view.metric} under corruptions", view.show(mean[view.metric]), beside(view.show(theirs[view.metric]) if theirs else None)))  # fmt: skip
    if view.cost != "trained_parameters":
        theirs = seconds_of(other, view.cost) if other is not None else None
        name = "time alone" if view.cost == "job_seconds" else "time of training"
        tiles.append(
            (name, duration(seconds_of(chosen, view.cost) or 0.0), beside(duration(theirs) if theirs else None))
        )
    memory, their_memory = ((each.get("cost") or {}).get("peak_rss_bytes") for each in (found, compared))
    if is_number(memory):
        tiles.append(
            (
                "peak memory",
                format_bytes(int(memory)),
                beside(format_bytes(int(their_memory)) if their_memory else None),
            )
        )
    share = f"{percent(parameters_of(chosen) / max(parameters, 1))} of the model"
    tiles.append(("parameters trained", count(parameters_of(chosen)), share))
    tiles.append(("learning rate", f"{found['chosen']['learning_rate']:g}", f"chosen by {found['chosen']['by'].replace('eval_', 'evaluation ')}"))  # fmt: skip
    return tag(
        "dl", *(tag("div", tag("dt", a), tag("dd", tag("b", b), tag("span", c))) for a, b, c in tiles), class_="tiles"
    )


def _draw_command(chosen: Row) -> list[Child]:
    words = "This command trains it again, to the bit:"
    return [tag("p", words, class_="what"), tag("pre", tag("code", chosen["quality"]["chosen"]["command"]), tabindex=0)]


def draw_sections(view: View) -> list[Markup]:
    """What the verdict rests on: pictures, tables and commands."""
    parts = (_costs, _at_best, _pairs, _rates, _shift, _classes, _commands)
    return [section for part in parts if (section := part(view)) is not None]


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")


def _together(drawn: Sequence[Markup]) -> Markup:
    return tag("div", *drawn, class_="pair")


def _costs(view: View) -> Markup | None:
    kinds = ["trained_parameters", "seconds" if view.cost == "trained_parameters" else view.cost, "peak_rss_bytes"]
    drawn = [chart for kind in kinds if (chart := quality_charts.draw_best(view, kind)) is not None]
    if not drawn:
        return None
    text = ""
    if view.find(view.best) is not None:
        text = (
            f"The dashed line is the {view.metric} of {view.best}, the best. The bar of each other strategy is the interval of its "
            "difference to the best, drawn from that line: a bar that reaches the line says that the two cannot be told apart."
        )
    if view.recommended:
        text += " The ring marks the recommended strategy."
    title = f"{view.metric.capitalize()} at its best against parameters, time and memory"
    return draw_section("cost", title, quality_charts.draw_key(), _together(drawn), _note(text) if text else None)


def _at_best(view: View) -> Markup | None:
    if not view.rows:
        return None
    meanings = table.explain_columns(view.rows, quality_tables.choose_best_columns(view))
    more = tag("details", tag("summary", "How to read the columns"), meanings)
    return draw_section("strategies", "Each strategy at its best", quality_tables.build_best(view), more)


def _pairs(view: View) -> Markup | None:
    pairs = quality_tables.list_pairs(view)
    if not pairs.rows:
        return None
    level = pairs.rows[0]["clean"]["level"]
    text = (
        f"Strategies are compared example by example on the {view.part} part (a paired bootstrap over examples and seeds, "
        f"{level:.0%} intervals). Of 20 pairs without a difference, one is resolved by chance."
    )
    if len(pairs.rows) < pairs.known:
        text += f" Of {count(pairs.known)} pairs, those with {view.recommended or view.best} or {view.best} are shown; results.json has all."
    return draw_section("apart", "Can they be told apart?", quality_tables.build_pairs(view, pairs), _note(text))


def _rates(view: View) -> Markup | None:
    chart, tests = quality_charts.draw_rates(view), quality_charts.draw_range_tests(view)
    if chart is None and not tests:
        return None
    inside: list[Child] = []
    if chart is not None:
        text = (
            "A circle marks the chosen rate. Crosses at the bottom are rates at which training diverged (the number counts "
            "strategies); small pale marks were dropped before the end. A curve that is flat around its circle "
            "depends little on the rate; one that ends at its circle may be better beyond."
        )
        inside += [chart, _note(text)]
    if tests:
        text = "The smoothed training loss while the learning rate rises; the dashed line is the rate that the search began from."
        inside += [tag("h3", "Range tests"), tag("div", *tests, class_="smalls"), _note(text)]
    return draw_section("sensitivity", "Sensitivity to the learning rate", *inside)


def _shift(view: View) -> Markup | None:
    chart = quality_charts.draw_shift(view)
    if chart is None:
        return None
    by_kind = quality_tables.build_corruptions(view)
    text = (
        f"The same {view.part} examples as they are, and seen through corruptions ({join_words(view.about.get('corrupt') or (), most=20)}). "
        "A strategy above the trend of the others keeps more of its quality on images unlike those of training."
    )
    unit = "in percent" if view.accuracy else "as they are"
    return draw_section("shifted", "Clean and corrupted images", quality_charts.draw_key(), chart, _note(text), by_kind, _note(f"Numbers {unit}; the stronger the ground, the better.") if by_kind else None)  # fmt: skip


def _classes(view: View) -> Markup | None:
    found = quality_tables.build_classes(view)
    if found is None:
        return None
    text = f"Accuracy in percent on the {view.part} examples of each class, mean over the seeds; the stronger the ground, the better."
    return draw_section("by-class", "Accuracy by class", found, _note(text))


def _commands(view: View) -> Markup | None:
    rows = [row for row in view.rows if (row.get("quality") or {}).get("chosen")]
    if not rows:
        return None
    inside: list[Child] = [_note("Each command is a plain finetune run with the settings that were chosen; it gives the same bits. One for each seed.")]  # fmt: skip
    for row in rows:
        chosen: Any = row["quality"]["chosen"]
        lines = "\n".join(chosen.get("commands") or [chosen["command"]])
        inside += [tag("h3", row["strategy"]), tag("pre", tag("code", lines), tabindex=0)]
    return draw_section("repeat", "To repeat a strategy alone", *inside)
