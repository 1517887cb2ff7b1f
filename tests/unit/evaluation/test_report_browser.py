"""The report's page in a real browser."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tersely.evaluation.report.page import page
from tersely.evaluation.report.result import Result
from tersely.io import write

from ...support.browser import LEAST_CONTRAST, Browser, needs_browser, tab_to
from ...support.planted_bench import HOSTILE, bare, planted

pytestmark = needs_browser

PLACES = """[...document.querySelector('svg.%s').querySelectorAll('text, circle')].map((e) => {
  const {left, right, top, bottom} = e.getBoundingClientRect();
  return {tag: e.tagName, text: e.textContent, x: (left + right) / 2, y: (top + bottom) / 2, left, right, top, bottom};
})"""


def saved(path: Path, *results: dict[str, Any]) -> Path:
    read = [(f"{i}.json", Result.model_validate_json(json.dumps(found))) for i, found in enumerate(results)]
    write(path, page(read, "0.1.0"))
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a whole result, of one that lacks all it may, and of several with text that would be markup."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = planted(model=HOSTILE, notes=[HOSTILE * 20], command=["x" * 300, HOSTILE], tasks=[HOSTILE])
    return {
        "whole": saved(folder / "whole.html", planted()),
        "bare": saved(folder / "bare.html", bare()),
        "several": saved(folder / "several.html", planted(), hostile),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["whole", "bare", "several"])
def test_it_is_readable_in_both_schemes_and_fits_any_width(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.open(pages[name], width, scheme)
    red, *_ = map(int, browser.get("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"))
    assert (red > 200) == (scheme == "light")
    browser.get("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    ratio, where = browser.get(LEAST_CONTRAST)
    assert ratio >= 4.5, where
    assert browser.get("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shown = browser.get("[...document.querySelectorAll('svg.chart')].map((e) => [e.classList[1], e.clientWidth > 0])")
    assert shown and all(visible == ((kind == "wide") == (width == 1280)) for kind, visible in shown)


@pytest.mark.parametrize(("width", "kind"), [(1280, "wide"), (390, "narrow")])
def test_points_lie_where_their_numbers_say(browser: Browser, pages: dict[str, Path], width: int, kind: str) -> None:
    browser.open(pages["whole"], width)
    places = browser.get(PLACES % kind)
    texts = [place for place in places if place["tag"] == "text"]
    dots = [place for place in places if place["tag"] == "circle"]
    ticks = [t for t in texts if t["text"].replace(",", "").isdigit()]
    bottom = max(t["y"] for t in ticks)
    xs = [(math.log(float(t["text"])), t["x"]) for t in ticks if abs(t["y"] - bottom) < 2]
    ys = [(float(t["text"]) / 100, t["y"]) for t in ticks if abs(t["y"] - bottom) >= 2]
    assert len(xs) >= 3 and len(ys) >= 3
    arms = planted()["arms"]
    for arm in arms:
        dot = next(d for d in dots if d["text"].startswith(f"{arm['name']}: "))
        assert dot["x"] == pytest.approx(along(xs, math.log(arm["tokens"]["total"])), abs=2)
        assert dot["y"] == pytest.approx(along(ys, arm["accuracy"]), abs=2)
    names = [t for t in texts if t["text"] in {arm["name"] for arm in arms}]
    assert len(names) == len(arms)
    for one, other in combinations(names, 2):
        beside = one["right"] <= other["left"] or other["right"] <= one["left"]
        assert beside or one["bottom"] - 3 <= other["top"] or other["bottom"] - 3 <= one["top"], (one, other)


def along(ticks: list[tuple[float, float]], value: float) -> float:
    """Where a value lies on an axis by its first and last tick."""
    (low, start), (high, end) = min(ticks), max(ticks)
    return start + (value - low) / (high - low) * (end - start)


def test_the_first_screen_says_what_came_of_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"])
    for place in (".verdict", "table tr.baseline", "table tr.judged", "table tr.cut"):
        assert 0 < browser.box(place)["bottom"] < 900
    order = "[...document.querySelectorAll('.verdict, table, figure')].slice(0, 3).map((e) => e.tagName)"
    assert browser.get(order) == ["P", "TABLE", "FIGURE"]
    heads = browser.get("[...document.querySelectorAll('h1, h2')].map((e) => e.textContent)")
    assert heads[1:] == ["By level", "Calibration", "Costs", "Tokens by kind", "Notes", "How to make it again"]


def test_the_keyboard_reaches_tables_numbers_and_results(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"], 390)
    browser.press("Tab")
    assert browser.get("document.activeElement.textContent") == "Skip to the report"
    browser.press("Tab")
    assert browser.get("['role', 'tabindex'].map((name) => document.activeElement.getAttribute(name))") == [
        "region",
        "0",
    ]
    assert float(browser.get("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")) >= 2
    browser.press("ArrowRight", 3)
    browser.wait("document.activeElement.scrollLeft > 0")
    assert browser.box("tr.judged th")["left"] >= 0  # an arm's name stays in sight
    tab_to(browser, "summary")
    browser.press("Enter")
    browser.wait("document.querySelector('details').open && document.querySelector('details table').clientHeight > 0")
    browser.open(pages["several"])
    tab_to(browser, "a[href='#r2']")
    browser.press("Enter")
    browser.wait("location.hash === '#r2' && document.getElementById('r2').getBoundingClientRect().top < 100")


def test_charts_and_regions_have_names(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    charts = [name for role, name in found if role in ("image", "img")]
    assert len(charts) == 6 and all(len(name) > 40 for name in charts)
    assert all(name for role, name in found if role in ("region", "link", "heading", "table"))


@pytest.mark.parametrize("name", ["whole", "bare", "several"])
def test_no_request_leaves_the_page_and_nothing_goes_wrong(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert asked - {pages[name].as_uri()} <= {"data:,"}
    wrong = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [e["params"] for e in browser.events if e["method"] in wrong] == []
    assert browser.get("document.querySelectorAll('img, script').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_screenshot_shows_the_judged_arm_in_the_colour_of_the_scheme(
    browser: Browser, pages: dict[str, Path], width: int, scheme: str
) -> None:
    browser.open(pages["whole"], width, scheme)
    dot = "svg.wide circle.judged" if width == 1280 else "svg.narrow circle.judged"
    browser.hover(dot)
    box = browser.box(dot)
    pixels = browser.screenshot()
    middle = pixels[round((box["top"] + box["bottom"]) / 2), round((box["left"] + box["right"]) / 2)]
    wanted = {name: browser.get(f"getComputedStyle(document.body).getPropertyValue('--{name}')") for name in COLOURS}
    assert [f"#{bytes(colour).hex()}" for colour in (middle, pixels[5, 5])] == [wanted["judged"], wanted["card"]]
    assert wanted == dict(zip(COLOURS, COLOURS_OF[scheme], strict=True))


COLOURS = ("judged", "card")
COLOURS_OF = {"light": ("#2f55d4", "#ffffff"), "dark": ("#8fa9ff", "#11151b")}
