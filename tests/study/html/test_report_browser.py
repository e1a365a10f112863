"""report.html in a real browser: Chromium, at a desktop's width and at a phone's."""

from __future__ import annotations

import base64
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import made
import made_quality
import pytest

from engine.study.html import report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
if not BROWSER or not DRIVER:
    pytest.skip(
        "chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)",
        allow_module_level=True,
    )
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives the browser, is not installed")

DESKTOP, PHONE = 1280, 375
LANDSCAPE = round((297 - 16) / 25.4 * 96)  # what @page leaves of A4, in CSS pixels


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Address of each study's report."""
    folder = tmp_path_factory.mktemp("reports")
    long = made.study([f"a_strategy_with_a_rather_long_name_{n}" for n in range(40)], ["engine"], repeats=1)
    differing = made.rich()
    differing["results"][0] |= {"precision": "float64", "micro_batches": 4, "repeats": 1}
    studies = {
        "rich": made.rich(),
        "one": made.study(["head"], ["engine"], accuracy=False, repeats=1),
        "hostile": made.hostile(),
        "long": long,
        "wide": differing,
        "quality": made_quality.study(mode="both", seeds=3),
        "quality_hostile": made_quality.hostile(),
    }
    for name, study in studies.items():
        report.write_report(folder / f"{name}.html", study)
    return {name: (folder / f"{name}.html").as_uri() for name in studies}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking", "disable-component-update",
        "disable-sync", "no-first-run", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, address: str, *, width: int = DESKTOP, scheme: str = "light", media: str = "screen") -> None:
    """Opens a page; afterwards nothing was said in the console, and nothing but the file was asked for."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(address)
    quiet(browser, address)


def quiet(browser: Any, address: str) -> None:
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url.split("#")[0] for url in asked} <= {address}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_renders_without_scrolling_sideways(browser: Any, pages: dict[str, str], width: int, scheme: str) -> None:
    for name, address in pages.items():
        show(browser, address, width=width, scheme=scheme)
        page = "const page = document.documentElement; return [page.scrollWidth - page.clientWidth, innerWidth]"
        assert browser.execute_script(page) == [0, width], name
        shown = browser.execute_script("""
            return [...document.querySelectorAll("h1, h2, .sentence, svg.chart, svg.strip, table, pre")].map((e) => {
                const box = e.getBoundingClientRect();
                return [e.tagName, box.width > 0 && box.height > 0 && box.left >= 0 && (e.tagName == "TABLE" || box.right <= innerWidth)];
            })""")
        assert len(shown) > 12
        assert all(good for _, good in shown), (name, shown)


def columns(browser: Any) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('thead button')].map((b) => b.textContent)")


# clicks on every column three times; after each click the sorted column, its state and what its cells are sorted by
CLICKS = """
const buttons = [...document.querySelectorAll("thead button")];
const cells = (n) => [...document.querySelectorAll("tbody tr")].map((r) => r.cells[n].dataset.v ?? null);
return buttons.map((button, n) => [cells(n), [1, 2, 3].map(() => {
  button.click();
  const sorted = [...document.querySelectorAll("th[aria-sort]")].map((h) => [h.textContent, h.getAttribute("aria-sort")]);
  return [sorted, cells(n)];
})]);
"""


def sorted_as(browser: Any) -> list[list[str]]:
    script = "return [...document.querySelectorAll('th[aria-sort]')].map((h) => [h.textContent, h.getAttribute('aria-sort')])"
    return browser.execute_script(script)


def test_every_column_sorts_as_what_it_is_with_missing_values_last(browser: Any, pages: dict[str, str]) -> None:
    show(browser, pages["wide"])
    titles = columns(browser)
    assert len(titles) == 30
    for title, (before, clicks) in zip(titles, browser.execute_script(CLICKS), strict=True):
        there = [value for value in before if value is not None]
        try:
            wanted: list[Any] = sorted(map(float, there))
        except ValueError:
            wanted = sorted(
                there, key=lambda text: [int(w) if w.isdigit() else w.lower() for w in re.split(r"(\d+)", text)]
            )
        missing = [None] * (len(before) - len(there))
        orders = (("ascending", wanted), ("descending", wanted[::-1]), ("ascending", wanted))
        for (direction, order), (state, found) in zip(orders, clicks, strict=True):
            values = [None if v is None else float(v) if isinstance(wanted[0], float) else v for v in found]
            assert values == [*order, *missing], (title, direction)
            assert state == [[title, direction]]
    quiet(browser, pages["wide"])


def test_each_table_of_a_page_sorts_by_itself(browser: Any, pages: dict[str, str]) -> None:
    show(browser, pages["quality"])
    order = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((r) => r.cells[0].textContent)"
    best, pairs = (browser.execute_script(order, key) for key in ("#best", "#pairs"))
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#pairs th button')].map((b) => b.textContent)"
    )
    button = browser.find_elements("css selector", "#pairs th button")[titles.index("Examples needed")]
    button.click()
    assert sorted_as(browser) == [["Examples needed", "ascending"]]
    assert browser.execute_script(order, "#best") == best
    assert sorted(browser.execute_script(order, "#pairs")) == sorted(pairs) != pairs
    quiet(browser, pages["quality"])


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_click_sorts(browser: Any, pages: dict[str, str], width: int) -> None:
    show(browser, pages["rich"], width=width)
    title = "Job (s)"
    button = browser.find_elements("css selector", "thead button")[columns(browser).index(title)]
    first = "return document.querySelector('tbody tr').textContent"
    button.click()
    assert sorted_as(browser) == [[title, "ascending"]]
    assert browser.execute_script(first).startswith("headengine_cached")
    button.click()
    assert sorted_as(browser) == [[title, "descending"]]
    assert browser.execute_script(first).startswith("fullv1_")
    quiet(browser, pages["rich"])


def test_the_failed_run_is_last_in_both_directions_and_rows_stay_whole(browser: Any, pages: dict[str, str]) -> None:
    show(browser, pages["rich"])
    row = "return [...document.querySelectorAll('tbody tr')].map((r) => r.textContent)"
    before = browser.execute_script(row)
    button = browser.find_elements("css selector", "thead button")[columns(browser).index("Job (s)")]
    for _ in range(2):
        button.click()
        after = browser.execute_script(row)
        assert "failed" in after[-1]
        assert sorted(after) == sorted(before)
        assert after != before


def test_the_keyboard_reaches_and_sorts(browser: Any, pages: dict[str, str]) -> None:
    show(browser, pages["rich"])
    keys = webdriver.Keys
    titles = columns(browser)
    focused = []
    for _ in range(len(titles) + 2):
        webdriver.ActionChains(browser).send_keys(keys.TAB).perform()
        focused.append(browser.execute_script("return document.activeElement.textContent.slice(0, 60)"))
        if focused[-1] == "Accuracy":
            outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", "the focus is seen"
            webdriver.ActionChains(browser).send_keys(keys.ENTER).perform()
            assert sorted_as(browser) == [["Accuracy", "ascending"]]
    assert focused[0] == "To the table of all runs"
    assert focused[2:] == titles


def test_names_of_users_are_never_run(browser: Any, pages: dict[str, str]) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    show(browser, pages["hostile"])
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.dismiss()
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return document.querySelector('header strong').textContent") == made.HOSTILE
    assert (
        browser.execute_script("return JSON.parse(document.getElementById('study').textContent).job.model")
        == made.HOSTILE
    )


def test_the_policy_would_stop_what_got_in(browser: Any, pages: dict[str, str]) -> None:
    show(browser, pages["one"])
    browser.execute_script("""
        const script = document.createElement("script"); script.textContent = "window.ran = true"; document.body.append(script);
        const image = document.createElement("img"); image.src = "http://127.0.0.1:9/x.png"; document.body.append(image);
    """)
    assert browser.execute_script("return window.ran === undefined")
    said = "".join(entry["message"] for entry in browser.get_log("browser"))
    assert said.count("Content Security Policy") == 2


CONTRAST = """
const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (rgb) => rgb.slice(0, 3).map(channel).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
return arguments[0].map((where) => {
  const e = document.querySelector(where), style = getComputedStyle(e);
  const [a, b] = [light(parse(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))].sort((x, y) => y - x);
  return [where, (a + 0.05) / (b + 0.05)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(browser: Any, pages: dict[str, str], scheme: str) -> None:
    show(browser, pages["rich"], scheme=scheme)
    texts = [
        "body",
        ".over",
        ".note",
        ".answer h2",
        ".tiles dt",
        ".tiles b",
        "thead button",
        "tbody th",
        "td .bad",
        "td .good",
        "dd",
        "svg .tick",
        "svg .label",
        "svg .label.chosen",
        "pre",
    ]
    found = dict(browser.execute_script(CONTRAST, texts))
    assert {where: ratio for where, ratio in found.items() if ratio < 4.5} == {}
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 150) is (scheme == "dark")


@pytest.mark.slow
def test_it_prints_with_the_whole_table(browser: Any, pages: dict[str, str], tmp_path: pathlib.Path) -> None:
    show(browser, pages["rich"], scheme="dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": False})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 5
    for name in ("rich", "wide", "hostile", "long"):
        show(browser, pages[name], width=LANDSCAPE, scheme="dark", media="print")
        right, shown, ink = browser.execute_script("""
            const table = document.querySelector("table");
            return [table.getBoundingClientRect().right, getComputedStyle(table.parentElement).overflowX,
                    getComputedStyle(document.body).color];""")
        assert right <= LANDSCAPE, name
        assert shown == "visible"
        assert ink == "rgb(0, 0, 0)", "printed as in the light, whatever the screen's scheme"
