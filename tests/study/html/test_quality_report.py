"""report.html of quality mode as text: all that must be in it is, of any kind of study, and nothing of a user's gets out."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import made
import made_quality
import pytest
from test_report import Reader, close

from engine.study.html import axes, quality_charts, quality_tables, report
from engine.study.html.quality_view import View, open_view


def studies() -> dict[str, dict[str, Any]]:
    hopeless = [made_quality.hopeless(f"is_{fault}", fault) for fault in ("failed", "diverged", "pending")]
    waiting = made_quality.study()
    waiting["quality"]["verdict"] = None
    for row in waiting["results"]:
        row["quality"] |= {"test": None, "shifted": None, "compared": []}
    many = {f"strategy_number_{n}": (0.6 + n / 100, 5.0 + n * n, 1000 * (n + 1) ** 2) for n in range(20)}
    return {
        "quality": made_quality.study(more=hopeless),
        "both": made_quality.study(mode="both", part="evaluation", seeds=3),
        "loss": made_quality.study(accuracy=False),
        "one": made_quality.study({"head": (0.7, 5.0, 970)}, shifted=False),
        "diverged": made_quality.finish([made_quality.hopeless(name, "diverged") for name in ("y", "z")], {}),
        "60 classes": made_quality.study(classes=[f"class {n}" for n in range(60)]),
        "hostile": made_quality.hostile(),
        "many": made_quality.study(many),
        "waiting": waiting,
        "empty": made_quality.finish([], {}),
    }


STUDIES = studies()


class Pages(dict[str, str]):
    """The page of each study, built when a test asks for it and not while tests are collected."""

    def __missing__(self, name: str) -> str:
        return self.setdefault(name, report.build_page(STUDIES[name]))


PAGES = Pages()


def view(name: str) -> View:
    found = open_view(STUDIES[name])
    assert found is not None
    return found


def text(name: str) -> str:
    return "".join(Reader(PAGES[name]).texts("main"))


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_is_whole_and_needs_nothing_else(name: str) -> None:
    page = Reader(PAGES[name])
    for element, attributes, _ in page.elements:
        assert not {"style", "src", "srcset", "action", "data"} & set(attributes), f"{element}: {attributes}"
        assert not [key for key in attributes if key.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?://", PAGES[name].replace(made.HOSTILE, ""))
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for attributes in page.all("svg"):
        named = (attributes.get("aria-labelledby") or "").split()
        assert set(named) <= set(ids)
        assert named or attributes.get("aria-hidden") == "true"
    (skip,) = [a["href"] for a in page.all("a") if a.get("class") == "skip"]
    assert (skip or "")[1:] in ids or name == "empty"
    (at,) = [n for n, a in enumerate(page.all("script")) if a.get("id") == "study"]
    assert close(json.loads(page.texts("script")[at]), STUDIES[name]), "every figure is in the file"
    assert not re.search(r"\bnan\b|\bNone\b(?!\.)", "".join(page.texts("main")))


def test_what_a_person_asks_comes_in_that_order() -> None:
    assert Reader(PAGES["quality"]).texts("h2") == [
        "Recommendation", "Accuracy at its best against parameters, time and memory", "Each strategy at its best", "Can they be told apart?",
        "Sensitivity to the learning rate", "Clean and corrupted images", "Accuracy by class", "To repeat a strategy alone",
        "What each strategy trains", "Notes", "Machine, versions, command",
    ]  # fmt: skip
    assert Reader(PAGES["diverged"]).texts("h2") == [
        "Recommendation", "Each strategy at its best", "Sensitivity to the learning rate", "What each strategy trains", "Notes",
        "Machine, versions, command",
    ]  # fmt: skip
    verdict = STUDIES["quality"]["quality"]["verdict"]
    page = Reader(PAGES["quality"])
    assert verdict["sentence"] in page.texts("p")
    assert set(verdict["reasons"]) <= set(page.texts("li"))
    assert verdict["warnings"][0] in page.texts("p")


def test_both_modes_have_both_tables_and_one_recommendation() -> None:
    page = Reader(PAGES["both"])
    heads = page.texts("h2")
    assert heads.count("Recommendation") == 1
    assert "Cost: all runs" in heads
    assert "Accuracy against time and memory" not in heads, "those accuracies are of one learning rate"
    assert "'s gain" not in text("both"), "a gain over an untrained head says nothing"
    assert not re.search(r"\bgain\b", text("quality"))
    assert "There is no test part" in text("both")
    assert "for want of a test part" in "".join(page.texts("header"))
    ids = {a.get("id") for a in page.all("table")}
    assert {"rows", "best", "pairs"} <= ids
    assert "Alone (s)" in page.texts("button")


def test_a_cost_study_is_as_it_was() -> None:
    page = Reader(report.build_page(made.study(["head", "full"], ["engine"], repeats=1)))
    assert page.texts("h2")[1] == "Accuracy against time and memory"
    assert "Sensitivity" not in "".join(page.texts("main"))


def test_a_study_that_is_not_judged_yet_says_so() -> None:
    assert "No verdict yet" in text("waiting")
    assert "Sensitivity to the learning rate" in text("waiting")
    assert "it has not been judged".replace(" ", "\u00a0") in text("waiting")


def test_what_is_not_known_of_the_study_yet_may_be_missing() -> None:
    study = copy.deepcopy(STUDIES["waiting"])
    study["quality"] |= {"seconds": None, "corrupt": None, "rates": [1e-4, 1e-3], "search": "halving"}
    page = Reader(report.build_page(study))
    assert "at the learning rates 0.0001 and 0.001, by successive halving" in "".join(page.texts("header"))


def test_names_of_users_stay_text() -> None:
    page = Reader(PAGES["hostile"])
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert "a&b" in page.texts("h3")
    assert made.HOSTILE in page.texts("code")


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize(
    "key", ["test", "shifted", "range_test", "chosen", "cost", "seconds", "rates", "search_seconds"]
)
def test_any_part_of_a_row_may_be_missing(name: str, key: str) -> None:
    if name in ("many", "60 classes", "hostile", "empty"):
        return
    study = copy.deepcopy(STUDIES[name])
    rows = [row for row in study["results"] if row["runner"] == "quality" and row["quality"]]
    rows[-1]["quality"][key] = [] if key == "rates" else None
    Reader(report.build_page(study))


def test_numbers_that_are_not_finite_are_missing() -> None:
    study = copy.deepcopy(STUDIES["quality"])
    found = study["results"][0]["quality"]
    found["rates"][0] |= {"eval_accuracy": math.nan, "eval_loss": math.inf}
    found["range_test"]["losses"][3] = math.nan
    found["shifted"]["mean"]["accuracy"] = math.nan
    found["test"]["calibration_error"] = math.inf
    found["test"]["classes"][0]["accuracy"] = math.nan
    assert not re.search(r"\b(nan|NaN|Infinity)\b", report.build_page(study))


# ---- tables


def cells(table: Any) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(table).iter("tr")]


def test_the_table_of_strategies_holds_every_row_and_explains_every_column() -> None:
    page = Reader(PAGES["quality"])
    found = cells(quality_tables.build_best(view("quality")).split("</p>")[1])
    assert [row[0] for row in found[1:]] == [
        row["strategy"] + ("recommended" if row["strategy"] == "last_2" else "") for row in view("quality").rows
    ]
    assert set(found[0]) <= set(page.texts("dt"))
    assert {"ECE", "Adaptive ECE", "Shifted acc.", "Rate", "Train (s)", "Search (s)"} <= set(found[0])
    at = found[0].index("Rate")
    assert found[1][at] == "0.001"
    assert found[1][found[0].index("Phases")] == "@head head/.* (64 steps)".replace(" ", "\u00a0")
    assert "Adapters" not in found[0], "a column without any value is left out"


def test_each_pair_is_there_once_the_better_one_first() -> None:
    pairs = quality_tables.list_pairs(view("quality"))
    assert len(pairs.rows) == pairs.known == 21
    assert all(pair["clean"]["mean"] >= 0 for pair in pairs.rows)
    table = cells(quality_tables.build_pairs(view("quality"), pairs))
    assert table[0][:4] == ["Pair", "Difference (points)", "Interval", "Resolved"]
    first = pairs.rows[0]
    assert table[1][1] == f"{100 * first['clean']['mean']:+.1f}"
    assert table[1][3] == ("yes" if first["clean"]["resolved"] else "no")
    losses = quality_tables.list_pairs(view("loss"))
    assert all(pair["clean"]["mean"] <= 0 for pair in losses.rows)
    assert cells(quality_tables.build_pairs(view("loss"), losses))[0][1] == "Difference (loss)"


def test_of_very_many_pairs_those_of_the_recommended_and_the_best_are_shown() -> None:
    pairs = quality_tables.list_pairs(view("many"))
    assert pairs.known == 190
    assert len(pairs.rows) == 37
    assert "Of 190 pairs, those with" in text("many")


def test_classes_are_columns_up_to_thirty_and_then_least_median_and_largest() -> None:
    few = cells(quality_tables.build_classes(view("quality")))
    assert few[0] == ["Strategy", *made_quality.CLASSES]
    assert len(few) == 8
    many = cells(quality_tables.build_classes(view("60 classes")))
    assert many[0] == ["Strategy", "least", "median", "largest", "least for"]
    assert float(many[1][1]) <= float(many[1][2]) <= float(many[1][3])
    assert many[1][4].startswith("class 0, class 7, class 14 and 6 more")
    assert quality_tables.build_classes(view("loss")) is None


def test_the_stronger_ground_is_the_better_number() -> None:
    for name in ("quality", "loss"):
        table = ElementTree.fromstring(quality_tables.build_corruptions(view(name)))
        found = [(float(c.text or 0), int(c.attrib["class"][-1])) for c in table.iter("td")]
        found.sort(reverse=name == "loss")
        assert [shade for _, shade in found] == sorted(shade for _, shade in found)
        assert {shade for _, shade in found} >= {0, 8}


def test_every_seed_has_its_command() -> None:
    blocks = Reader(PAGES["both"]).texts("pre")
    assert sum(block.count("\n") == 2 and block.count("frostline finetune") == 3 for block in blocks) == 7


# ---- charts


def drawings(name: str) -> dict[str, ElementTree.Element]:
    found = {kind: quality_charts.draw_best(view(name), kind) for kind in quality_charts.COSTS}
    found |= {"rates": quality_charts.draw_rates(view(name)), "shift": quality_charts.draw_shift(view(name))}
    found |= {f"range {n}": drawn for n, drawn in enumerate(quality_charts.draw_range_tests(view(name)))}
    return {key: ElementTree.fromstring(value) for key, value in found.items() if value is not None}


@pytest.mark.parametrize("name", STUDIES)
def test_drawings_are_whole_and_nothing_lies_outside(name: str) -> None:
    for key, drawing in drawings(name).items():
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        for element in drawing.iter():
            for attribute, value in element.attrib.items():
                if attribute in ("x", "x1", "x2", "cx"):
                    assert -0.5 <= float(value) <= width + 0.5, (key, element.attrib)
                if attribute in ("y", "y1", "y2", "cy"):
                    assert -0.5 <= float(value) <= height + 0.5, (key, element.attrib)
            for point in element.attrib.get("points", "").split():
                x, y = map(float, point.split(","))
                assert -0.5 <= x <= width + 0.5, (key, point)
                assert -0.5 <= y <= height + 0.5, (key, point)


def test_which_charts_there_are() -> None:
    assert set(drawings("one")) == {"trained_parameters", "seconds", "rates", "range 0"}
    assert {"job_seconds", "peak_rss_bytes", "shift"} <= set(drawings("both"))
    assert set(drawings("empty")) == set()
    assert set(drawings("diverged")) == {"rates", "range 0", "range 1"}


def test_the_recommended_strategy_is_ringed_and_intervals_lead_from_the_best() -> None:
    drawing = drawings("quality")["seconds"]
    (ring,) = [e for e in drawing.iter() if e.attrib.get("class") == "ring"]
    assert [e.text for e in drawing.iter() if e.attrib.get("class") == "label chosen"] == ["last_2"]
    (line,) = [e for e in drawing.iter() if e.attrib.get("class") == "frontier"]
    bars = [e.attrib for e in drawing.iter() if e.attrib.get("class") == "whisker" and e.attrib["x1"] == e.attrib["x2"]]
    assert len(bars) == 6, "the best one has no difference to itself"
    level = float(line.attrib["y1"])
    reach = {bar["x1"]: float(bar["y1"]) - 0.1 <= level <= float(bar["y2"]) + 0.1 for bar in bars}
    assert reach[ring.attrib["cx"]]
    assert sum(reach.values()) == len(STUDIES["quality"]["quality"]["verdict"]["equals"])


def test_rates_that_diverged_lie_at_the_bottom_with_the_strategies_that_did() -> None:
    drawing = drawings("quality")["rates"]
    crosses = [e for e in drawing.iter() if e.attrib.get("class") == "cross"]
    assert [c.findtext("title") for c in crosses] == [
        "diverged at 0.1: last_2, full, lp_ft, last_4, bias, head, first_1, is_diverged and is_pending",
        "diverged at 1: is_diverged",
    ]
    picks = [e for e in drawing.iter() if "pick" in e.attrib.get("class", "")]
    assert len(picks) == 8
    faint = [e for e in drawing.iter() if "faint" in e.attrib.get("class", "")]
    assert all("dropped after 16 steps" in (e.findtext("title") or "") for e in faint)
    assert len(faint) == 8


def test_a_logarithmic_axis_has_ticks_for_any_range() -> None:
    for values in ([970], [3000.0, 3100.0], [1e-5, 1e2], [1e-8, 1e8], [12_810, 2_270_794], [0.1]):
        axis = axes.log_axis(values)
        assert 1 <= len(axis.ticks) <= 9
        assert all(0 <= axis.at(tick) <= 1 for tick in (*axis.ticks, *values))
        assert len({axis.text(tick) for tick in axis.ticks}) == len(axis.ticks)
    assert axes.log_axis([12_810, 2_270_794]).text(200_000.0) == "200k"
