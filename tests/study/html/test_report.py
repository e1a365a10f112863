"""report.html as text: all that must be in it is, nothing of a user's gets out of its place, and the drawings are true."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import itertools
import json
import math
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import made
import pytest

from engine.study.formatting import count, digits, duration, percent, plural
from engine.study.html import axes, charts, labels, report, strip, table
from engine.study.html.markup import Markup, data, escape, tag
from engine.study.recommend import recommend
from engine.text import join_words

VOID = {"meta", "link", "br", "hr"}


class Reader(html.parser.HTMLParser):
    """A page as (name, attributes, text) of each element; fails where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[int] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for number in self.open:
            self.elements[number][2].append(data)

    def texts(self, name: str) -> list[str]:
        return ["".join(text) for tag, _, text in self.elements if tag == name]

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes, _ in self.elements if tag == name]


def studies() -> dict[str, dict[str, Any]]:
    all_failed = made.study(["head"], ["engine"])
    all_failed["results"] = [made.failed("head", "engine", "")]
    all_failed["curves"] = []
    return {
        "rich": made.rich(),
        "one": made.study(["head"], ["engine"], accuracy=False, repeats=1),
        "hostile": made.hostile(),
        "many": made.study([f"number_{n}" for n in range(40)], ["engine", "engine_cached"], repeats=1),
        "failed": all_failed,
        "empty": made.study([], []),
    }


STUDIES = studies()
PAGES = {name: report.build_page(study) for name, study in STUDIES.items()}


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
    assert len(page.all("h1")) == 1
    assert page.all("html") == [{"lang": "en"}]


@pytest.mark.parametrize("name", STUDIES)
def test_scripts_and_styles_are_those_of_the_policy_alone(name: str) -> None:
    page = Reader(PAGES[name])
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(page.all("script")) == 2
    assert len(page.all("style")) == 1
    for content in (page.texts("style")[0], page.texts("script")[1]):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_names_of_users_stay_text() -> None:
    page = Reader(PAGES["hostile"])
    assert not page.all("img")
    assert not {"alert"} & {name for name, _, _ in page.elements}
    assert made.HOSTILE in "".join(page.texts("main"))
    assert any(made.HOSTILE in (text or "") for text in page.texts("title"))
    assert not re.search("[\x00-\x08\x1b\ud800-\udfff\u202e]", PAGES["hostile"])
    PAGES["hostile"].encode()


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_lies_in_the_page(name: str) -> None:
    page = Reader(PAGES[name])
    (at,) = [n for n, a in enumerate(page.all("script")) if a.get("id") == "study"]
    found = json.loads(page.texts("script")[at])
    assert close(found, STUDIES[name])
    assert "</" not in page.texts("script")[at]


def close(a: Any, b: Any) -> bool:
    if isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(b, dict):
        return list(a) == list(b) and all(close(a[key], b[key]) for key in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return bool(a == b)


def test_what_a_person_asks_comes_in_that_order() -> None:
    page = Reader(PAGES["rich"])
    assert page.texts("h1") == ["Which variables should I train?"]
    assert page.texts("h2") == [
        "Recommendation", "Accuracy against time and memory", "Learning curves", "What each strategy trains", "All runs",
        "Notes", "How to read the columns", "Machine, versions, command",
    ]  # fmt: skip
    assert recommend(STUDIES["rich"]).sentence in page.texts("p")
    text = "".join(page.texts("main"))
    for words in (
        "v1_var_list ended at a loss of 1.31", "every by keras_fit: vit:mini is not a Keras model", "full by v1_stop_gradient",
        "MemoryError: 2 GiB <tensor> & more", "A Processor 9000, 2 cores", "tensorflow 2.21.0", "153 GFLOP/s",
        "python -m scripts.benchmark_freezing --model=vit:mini",
    ):  # fmt: skip
        assert words in text, words


def test_the_rich_report_is_small_and_says_the_same_every_time(tmp_path: pathlib.Path) -> None:
    report.write_report(tmp_path / "a.html", STUDIES["rich"])
    report.write_report(tmp_path / "a.html", copy.deepcopy(STUDIES["rich"]))
    content = (tmp_path / "a.html").read_bytes()
    assert len(content) < 500_000
    assert content == PAGES["rich"].encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_another_format_is_refused(tmp_path: pathlib.Path) -> None:
    for number in (1, None, "2"):
        with pytest.raises(report.ReportError, match=r"study\['format'\]=.*expected format 2"):
            report.write_report(tmp_path / "a.html", made.rich() | {"format": number})
    old = {key: value for key, value in made.rich().items() if key != "format"} | {"version": 1}
    with pytest.raises(report.ReportError, match="another version of Frostline wrote this study"):
        report.write_report(tmp_path / "a.html", old)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_missing() -> None:
    study = made.study(["head", "full"], ["engine"])
    for at, value in enumerate((math.nan, math.inf)):
        study["results"][at] |= {"final_loss": value, "gemm_share": -math.inf, "peak_rss_bytes": value}
        study["curves"][at]["points"][0]["eval_accuracy"] = value
    page = report.build_page(study)
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", Reader(page).texts("script")[0])
    assert "Train loss" not in page


def test_any_number_may_be_missing() -> None:
    """Whatever a run could not measure: the page is there, and says the rest."""
    for key in made.row("head", "engine", order=0, trained=1, parameters=2):
        if key not in ("strategy", "runner", "failed"):
            study = made.study(["head", "full"], ["engine"], repeats=1)
            study["results"][0] = study["results"][0] | {key: None}
            Reader(report.build_page(study))


def test_a_broken_proof_is_said_loudly() -> None:
    study = made.study(["head", "full"], ["engine"])
    study["results"][0]["freeze_verified"] = False
    page = Reader(report.build_page(study))
    assert "BROKEN" in page.texts("td")
    assert "Runs that changed frozen variables" in page.texts("h3")


# ---- the table


def test_every_row_and_every_column_with_a_number_is_there() -> None:
    page = Reader(PAGES["rich"])
    heads = page.texts("button")
    rows = STUDIES["rich"]["results"]
    assert len(page.all("tr")) == len(rows) + 1
    assert len(page.texts("td")) + len([a for a in page.all("th") if a["scope"] == "row"]) == len(heads) * len(rows)
    assert set(heads) | {"Repeats", "Precision", "Micro-batches"} == {c.title for c in table.COLUMNS}
    assert [a.get("scope") for a in page.all("th")][: len(heads)] == ["col"] * len(heads)
    assert set(page.texts("dt")) >= set(heads), "each is explained"
    assert any(
        "60 rows; in all of them repeats 3, precision float32, micro-batches 1." in text for text in page.texts("p")
    )


def test_a_cell_shows_its_number_and_sorts_by_the_exact_one() -> None:
    rows = [
        made.row("head", "engine", order=0, trained=970, parameters=678_730, job_seconds=12.3456, repeats=2),
        made.failed("x", "engine", ""),
    ]
    page = Reader(str(table.build_table(rows, recommend(made.study([], [])))))
    heads = page.texts("button")
    cells = [(a.get("data-v"), "".join(t)) for n, a, t in page.elements if n == "td" or a.get("scope") == "row"]
    first, second = (
        dict(zip(heads, cells[: len(heads)], strict=True)),
        dict(zip(heads, cells[len(heads) :], strict=True)),
    )
    assert first["Job (s)"] == ("12.3456", "12.3")
    assert first["Trained"] == ("970", "970")
    assert first["Peak (MiB)"] == (repr(6e8 / 2**20), "572")
    assert first["Of GEMM (%)"][1] == "31.0"
    assert first["Frozen bits"] == ("kept", "kept")
    assert second["Job (s)"] == (None, "–")
    assert second["Runner"] == ("engine", "enginefailed")
    assert first["Repeats"][1] == "2", "where rows differ, a column says so"


def test_weights_that_differ_between_repeats_say_so() -> None:
    column = next(c for c in table.COLUMNS if c.title == "Weights")
    assert column.value({"weights_sha256": ["a" * 64, "a" * 64]}) == "aaaaaaaa"
    assert column.value({"weights_sha256": ["a" * 64, "b" * 64]}) == "2 different"


# ---- drawings


def drawings(name: str) -> dict[str, ElementTree.Element]:
    study = STUDIES[name]
    advice = recommend(study)
    found = {cost: charts.draw_costs(study, advice, cost) for cost in ("job_seconds", "peak_rss_bytes")}
    found |= {over: charts.draw_curves(study, advice, over) for over in ("seconds", "step")}
    found["strip"] = strip.draw_strip(study)
    return {key: ElementTree.fromstring(value) for key, value in found.items() if value is not None}


@pytest.mark.parametrize("name", STUDIES)
def test_drawings_are_whole_and_nothing_lies_outside(name: str) -> None:
    found = drawings(name)
    assert set(found) == {"empty": set(), "failed": {"strip"}}.get(
        name, {"job_seconds", "peak_rss_bytes", "seconds", "step", "strip"}
    )
    for drawing in found.values():
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        places: list[tuple[float, float]] = []
        for element in drawing.iter():
            numbers = {
                key: float(value)
                for key, value in element.attrib.items()
                if key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy")
            }
            if element.tag == "pattern" or not (numbers or "points" in element.attrib):
                continue
            places += [tuple(map(float, point.split(","))) for point in element.attrib.get("points", "").split()]  # type: ignore[misc]
            places += [(value, 0) if "x" in key else (0, value) for key, value in numbers.items()]
        assert places
        assert all(-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5 for x, y in places)


def test_each_run_is_a_sign_at_its_place() -> None:
    rows = [r for r in STUDIES["rich"]["results"] if not r["failed"]]
    drawing = drawings("rich")["job_seconds"]
    signs = [e for e in drawing.iter() if "mark" in e.attrib.get("class", "")]
    titles = [sign.findtext("title") for sign in signs]
    assert len(titles) == len(set(titles)) == len(rows)
    assert "head, engine: accuracy 0.700, 1.6 s" in titles

    def x_of(sign: ElementTree.Element) -> float:
        if sign.tag == "circle":
            return float(sign.attrib["cx"])
        corners = [float(point.split(",")[0]) for point in sign.attrib["points"].split()]
        return (min(corners) + max(corners)) / 2

    by_time = sorted(rows, key=lambda r: r["job_seconds"])
    where = {title: x_of(sign) for title, sign in zip(titles, signs, strict=True)}
    title = "{strategy}, {runner}: accuracy {eval_accuracy:.3f}, "
    found = [next(x for t, x in where.items() if t and t.startswith(title.format(**r))) for r in by_time]
    assert all(b - a > -0.2 for a, b in itertools.pairwise(found))


def test_the_frontier_and_the_recommended_run_are_marked() -> None:
    drawing = drawings("rich")["job_seconds"]
    (ring,) = [e for e in drawing.iter() if e.attrib.get("class") == "ring"]
    (stairs,) = [e for e in drawing.iter() if e.attrib.get("class") == "frontier"]
    corners = [tuple(map(float, point.split(","))) for point in stairs.attrib["points"].split()]
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(corners))
    assert all(b[0] >= a[0] and b[1] <= a[1] for a, b in itertools.pairwise(corners)), "dearer is better on it"
    assert any(math.dist(corner, (float(ring.attrib["cx"]), float(ring.attrib["cy"]))) < 0.2 for corner in corners)
    assert [e.text for e in drawing.iter() if e.attrib.get("class") == "label chosen"] == ["last_4"]
    assert "On the efficient frontier: head, last_1, last_2" in (drawing.findtext("desc") or "")


def test_runners_differ_by_shape_and_by_colour() -> None:
    study = made.study(["head"], [*made.RUNNERS, "keras_fit", "another"])
    key = ElementTree.fromstring(charts.draw_runner_key(study))
    signs = [next(e for e in item.iter() if "mark" in e.attrib.get("class", "")) for item in key]
    shapes = {(s.tag, s.attrib.get("points")) for s in signs}
    assert len(shapes) == len({s.attrib["class"] for s in signs}) == len(signs) == 7


def test_curves_differ_by_dashes_and_carry_their_names() -> None:
    found = drawings("rich")["seconds"]
    told = [e.attrib["class"] for e in found.iter() if e.attrib.get("class", "").startswith("curve")]
    assert len(told) == len(set(told)) == 8
    style = report._file("page.css")
    dashes = [re.search(rf"\.d{n} {{ stroke-dasharray: ([^;]*);", style) for n in range(1, 8)]
    assert len({d.group(1) for d in dashes if d}) == 7
    assert len([e for e in found.iter() if e.attrib.get("class") == "other"]) == 4
    names = [e.text for e in found.iter() if e.attrib.get("class", "").startswith("label")]
    assert {"last_4", "full"} <= set(names)
    assert len([e for e in drawings("many")["step"].iter() if e.attrib.get("class") == "other"]) == 32


def test_a_strip_shows_what_a_strategy_trains() -> None:
    study = STUDIES["rich"]
    drawing = drawings("rich")["strip"]
    cells = [
        e.attrib["class"].split()[1] for e in drawing.iter() if e.tag == "rect" and "cell" in e.attrib.get("class", "")
    ]
    columns = len(cells) // len(study["strategies"])
    rows = {s["name"]: cells[n * columns : (n + 1) * columns] for n, s in enumerate(study["strategies"])}
    assert rows["head"] == ["frozen"] * (columns - 1) + ["trained"]
    assert rows["full"] == ["trained"] * columns
    assert rows["last_2"][-4:] == ["trained", "trained", "frozen", "trained"]
    assert rows["norms"][-2:] == ["trained", "trained"]
    assert rows["norms"][-3] == "partly"
    assert rows["head"] != rows["last_1"]


def test_a_strip_of_a_deep_model_stays_readable() -> None:
    study = made.study(["head", "full"], ["engine"])
    study["variables"] = [{"path": f"conv_{n}/kernel", "parameters": 9, "block": f"conv_{n}"} for n in range(300)]
    study["strategies"][0]["trained"] = [f"conv_{n}/kernel" for n in range(0, 300, 2)]
    drawing = ElementTree.fromstring(strip.draw_strip(study) or "")
    cells = [e for e in drawing.iter() if "cell" in e.attrib.get("class", "")]
    assert len(cells) == 2 * 14
    assert min(float(cell.attrib["width"]) for cell in cells) > 10


def test_statistics_that_never_train_do_not_make_a_part_hatched() -> None:
    study = made.study(["head", "full"], ["engine"])
    statistics = {"path": "norm/moving_mean", "parameters": 96, "block": "norm"}
    study["variables"] = [*study["variables"][:-2], statistics, *study["variables"][-2:]]

    def classes() -> set[str]:
        drawing = ElementTree.fromstring(strip.draw_strip(study) or "")
        return {e.attrib["class"] for e in drawing.iter() if "cell" in e.attrib.get("class", "")}

    assert classes() == {"cell trained", "cell frozen"}
    study["strategies"][1]["trained"] = ["norm/gamma", "norm/beta"]
    assert "cell partly" in classes(), "unless no strategy shows that they cannot"


# ---- parts of drawings


@pytest.mark.parametrize("seed", range(10))
def test_names_cover_neither_points_nor_one_another(seed: int) -> None:
    import random

    draw = random.Random(seed)
    points = [(draw.uniform(40, 340), draw.uniform(20, 240)) for _ in range(25)]
    names = [(f"strategy {n}", *point, 4.5) for n, point in enumerate(points)]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    found = labels.place_names(names, taken, (30, 10, 370, 260), size=11, far=25)
    assert found[0] is not None
    boxes = [
        labels._box(spot, labels.width_of(name, 11), 11) for spot, (name, *_) in zip(found, names, strict=True) if spot
    ]
    assert len(boxes) > 15
    for box in boxes[1:]:
        assert not any(labels._overlap(box, other) for other in taken)
        assert labels._inside(box, (30, 10, 370, 260))
    assert not any(labels._overlap(a, b) for a, b in itertools.combinations(boxes, 2))


def test_the_first_name_stands_even_where_there_is_no_room() -> None:
    found = labels.place_names([("a" * 80, 5, 5, 4), ("b", 5, 5, 4)], [(0, 0, 9, 9)], (0, 0, 9, 9), size=11, far=2)
    assert found[0] is not None
    assert found[1] is None


def test_spread_keeps_the_order_and_the_distance() -> None:
    found = labels.spread_heights([50, 10, 11, 12, 99], apart=5, low=0, high=100)
    assert [found[n] for n in (1, 2, 3, 0, 4)] == [10, 15, 20, 50, 99]
    crowded = labels.spread_heights([100.0] * 50, apart=10, low=0, high=100)
    assert sorted(crowded)[0] >= -1e-9
    assert max(crowded) <= 100


def test_ticks_are_round_and_within_the_axis() -> None:
    assert axes.linear_axis([0.7, 0.84]).ticks == pytest.approx((0.7, 0.75, 0.8))
    for low, high in ((0, 1), (3, 3), (0, 0), (-5, 5), (1e-9, 2e-9), (1e9, 1.1e9), (-3, -3)):
        axis = axes.linear_axis([low, high])
        assert 1 < len(axis.ticks) <= 7
        assert all(0 <= axis.at(tick) <= 1 for tick in (*axis.ticks, low, high))
        assert len({axis.text(tick) for tick in axis.ticks}) == len(axis.ticks)
    assert axes.linear_axis([5.0], zero=True).low == 0


def test_time_is_logarithmic_from_a_ratio_of_30_on() -> None:
    assert not axes.time_axis([1, 30]).log
    for longest in (31, 1e3, 1e6):
        axis = axes.time_axis([1, 7, longest])
        assert axis.log
        assert len(axis.ticks) > 1
        assert axis.at(longest) - axis.at(longest / 10) == pytest.approx(axis.at(10) - axis.at(1))
    assert axes.time_axis([0.0, 5.0]).low == 0
    assert axes.choose_unit(50) == (1, "seconds")
    assert axes.choose_unit(300) == (60, "minutes")
    assert axes.choose_unit(20000) == (3600, "hours")


def test_texts_are_escaped_once_and_markup_never() -> None:
    inner = tag("b", '<&"', class_="x", hidden=True, nothing=None, data_v='"><i>')
    assert inner == '<b class="x" hidden data-v="&quot;&gt;&lt;i&gt;">&lt;&amp;&quot;</b>'
    assert tag("p", inner, [1.5, (" ", Markup("<br>"))]) == f"<p>{inner}1.5 <br></p>"
    assert tag("circle", cx=1.0, r=2.345) == '<circle cx="1" r="2.35"></circle>'
    assert escape("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert json.loads(data(["</script><!--&"])) == ["</script><!--&"]
    assert not set("<>&") & set(data(["</script><!--&"]))


def test_numbers_read_as_people_write_them() -> None:
    assert [count(x) for x in (None, 0, 1234567)] == ["–", "0", "1,234,567"]
    assert [digits(x) for x in (None, 0.0, 1.6, 999.6, 123456.0, 0.012345, 1e-7)] == [
        "–",
        "0",
        "1.6",
        "1,000",
        "123,456",
        "0.0123",
        "1.00e-07",
    ]
    assert [digits(x, padded=True) for x in (1.6, 4.0, 99.0, 100.0)] == ["1.60", "4.00", "99.0", "100"]
    assert [duration(x) for x in (1.234, 119, 121, 7300)] == ["1.23 s", "119 s", "2.0 min", "2.0 h"]
    assert [percent(x) for x in (0, 0.004, 0.31, 1.5)] == ["0%", "under 1%", "31%", "150%"]
    assert [plural(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert [join_words(x) for x in ((), "a", "ab", "abc", "abcdefgh")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c, d, e and 3 more",
    ]
