"""The trace viewer's page in a real browser."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.trace import Decision, Usage
from tersely.evaluation.view.page import page
from tersely.evaluation.view.record import RunView, SegmentView, TokenView, TraceRecord
from tersely.io import write

from ...support.browser import LEAST_CONTRAST, Browser, focused, needs_browser, tab_to

pytestmark = needs_browser


def run(kinds: str, size: int = 4, **more: Any) -> dict[str, Any]:
    """The parts of a run whose segments are of the kinds named, each of some words, then an answer."""
    segments, tokens = [], []
    for kind in kinds.split():
        words = [f"{kind}{i} " for i in range(size)]
        segments.append(SegmentView(kind=kind, text="".join(words), thinking=True))  # type: ignore[arg-type]
        if kind != "trimmed":
            tokens += words
    segments.append(SegmentView(kind="kept", text="It is 7.", thinking=False))
    tokens.append("It is 7.")
    return {
        "answer": "7",
        "tier": "easy",
        "finish_reason": "stop",
        "usage": Usage(thinking=len(tokens) - 1, answer=1, forced=size),
        "segments": tuple(segments),
        "tokens": tuple(
            TokenView(text=text, entropy=1 + math.sin(i / 9), probe={"ready": i / len(tokens)})
            for i, text in enumerate(tokens)
        ),
        **more,
    }


DECISIONS = (
    Decision("trim", "trim", "nothing new was said", 4),
    Decision("hint", "inject", "hint 1, block of 128 tokens", 8, "forced0 forced1"),
    Decision("budget", "close", "budget of 16 tokens is used up", 12, "End.", acted=False),
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages with several records, and with one of ten thousand tokens."""
    folder = tmp_path_factory.mktemp("pages")
    ours = run("kept trimmed kept forced delegated", decisions=DECISIONS, gold="7")
    theirs = RunView(**run("kept kept kept kept kept"))
    first = TraceRecord(version=1, id="first", question="2 + 5?", uncontrolled=theirs, **ours)
    second = TraceRecord(version=1, id="second", question="</script><img src=x onerror=alert(1)> 3 + 3?", **run("kept"))
    ours = run("kept forced kept kept", 2_500, decisions=(Decision("hint", "inject", "hint 1", 2_500),))
    large = TraceRecord(version=1, id="large", question="long", uncontrolled=RunView(**run("kept", 12_000)), **ours)
    found = {"several": folder / "several.html", "large": folder / "large.html"}
    write(found["several"], page([first, second], "several.jsonl"))
    write(found["large"], page([large], "large.jsonl"))
    return found


def test_the_keyboard_reaches_a_decision_and_shows_its_reason(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    browser.press("Tab")
    assert focused(browser, "textContent") == "Skip to the record"
    tab_to(browser, ".text .mark")
    browser.shows("nothing new was said")
    assert focused(browser) == "Decision 1 of 3: trim: trim at token 4. nothing new was said"
    assert float(browser.get("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")) >= 2
    browser.press("ArrowRight")
    browser.shows("hint 1, block of 128 tokens", "put in: forced0 forced1")
    browser.press("End")
    browser.shows("shadow mode: recorded, not carried out")
    browser.press("Escape")
    browser.shows()
    tab_to(browser, ".decisions .mark")
    browser.press("Enter")
    assert focused(browser).startswith("Decision 1 of 3")
    browser.shows("nothing new was said")


def test_the_keyboard_walks_over_tokens_and_shows_their_values(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    tab_to(browser, "[role=slider]")
    browser.shows("token 1 of 17")
    browser.press("ArrowRight", 9)
    assert focused(browser, "ariaValueText") == 'token 10, "forced1 ", forced, entropy 1.84 nats, ready 0.53'
    browser.shows("forced1␣", "token 10 of 17", "thinking, forced", "1.84 nats", "ready", "0.53")
    assert browser.get("document.querySelector('.text .at').textContent") == "forced1 "
    browser.press("End")
    assert focused(browser, "ariaValueNow") == "17"
    tab_to(browser, "[role=slider]")
    assert focused(browser) == "Token of the uncontrolled run"


def test_hovering_shows_the_same_and_the_tip_can_be_hovered(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    browser.hover(".text .mark")
    browser.shows("nothing new was said")
    browser.hover("#tip")
    time.sleep(0.3)  # longer than it takes to close
    browser.shows("nothing new was said")
    browser.hover(".text .forced span")
    browser.shows("token 9 of 17")
    for place, words in ((".lane", "of 17"), (".track .flag", "nothing new was said")):
        browser.hover("h1")
        browser.shows()
        browser.hover(place)
        browser.shows(words)


def test_kinds_differ_by_line_and_pattern_not_by_colour_alone(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    kinds = ("kept", "forced", "trimmed", "delegated")
    assert browser.get("[...document.querySelectorAll('.legend .seg')].map((e) => e.textContent)") == list(kinds)
    style = "getComputedStyle(document.querySelector('.text .%s')).textDecoration.replace(/rgb.*/, '')"
    assert len({browser.get(style % kind) for kind in kinds}) == 4
    fill = "getComputedStyle(document.querySelector('.ribbon .%s')).backgroundImage"
    assert len({browser.get(fill % kind) for kind in kinds}) == 4
    tags = browser.get("['forced', 'trimmed'].map((kind) => document.querySelector('.text .' + kind).tagName)")
    assert tags == ["INS", "DEL"]


def test_several_records_are_listed_filtered_and_reached(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    assert browser.get("document.getElementById('totals').innerText.split(/\\s+/).join(' ')") == (
        "Records 2 Tokens 22 Uncontrolled 21 Difference 19% saved Forced 8 Decisions 3 Right 1 of 1"
    )
    tab_to(browser, "#items a")
    browser.press("ArrowDown")
    browser.press("Enter")
    browser.wait("location.hash === '#r2'")
    browser.wait("document.querySelector('main h2').textContent.startsWith('</script><img src=x')")
    assert browser.get("document.querySelectorAll('main img, #items img').length") == 0
    assert browser.get("document.querySelector('[aria-current]').getAttribute('href')") == "#r2"
    assert browser.get("document.title") == "second · several.jsonl · tersely"
    browser.get("document.getElementById('search').focus()")
    browser.call("Input.insertText", text="BLOCK of 128")
    assert browser.get("document.getElementById('found').textContent") == "1 of 2 records"
    assert browser.get("document.querySelector('#totals dd').textContent") == "1"
    browser.call("Input.insertText", text=" nothing")
    assert "1 of 2" in browser.get("document.getElementById('found').textContent")
    browser.call("Input.insertText", text=" zzz")
    assert browser.get("document.getElementById('found').textContent").startswith("No record fits")
    browser.open(pages["several"], at="#r2")
    assert browser.get("document.querySelector('main h2').textContent").endswith("3 + 3?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 360])
def test_it_is_readable_in_both_schemes_and_fits_any_width(
    browser: Browser, pages: dict[str, Path], scheme: str, width: int
) -> None:
    browser.open(pages["several"], width, scheme)
    red, *_ = map(int, browser.get("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"))
    assert (red > 200) == (scheme == "light")
    browser.hover(".text .mark")
    ratio, where = browser.get(LEAST_CONTRAST)
    assert ratio >= 4.5, where
    assert browser.get("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    tip = browser.box("#tip")
    assert 0 <= tip["left"] < tip["right"] <= browser.get("document.documentElement.clientWidth")
    tops = browser.get("[...document.querySelectorAll('.pane')].map((pane) => pane.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (width == 1440)


def test_everything_that_can_be_focused_has_a_name(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = []
    for node in nodes:
        true = {p["name"] for p in node.get("properties", []) if p["value"].get("value") is True}
        if "focusable" in true and node["role"]["value"] != "main":
            named.append((node["role"]["value"], node.get("name", {}).get("value")))
    assert len(named) > 15
    assert [role for role, name in named if not name] == []
    assert {"slider", "button", "region", "link", "searchbox", "combobox"} <= {role for role, _ in named}


@pytest.mark.parametrize("name", ["several", "large"])
def test_no_request_leaves_the_page_and_nothing_goes_wrong(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    browser.hover(".text .mark")
    asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert asked - {pages[name].as_uri()} <= {"data:,"}
    wrong = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [e["params"] for e in browser.events if e["method"] in wrong] == []


def test_ten_thousand_tokens_become_interactive(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["large"])
    assert browser.get("document.querySelector('[role=slider]').ariaValueMax") == "10001"
    assert browser.get("document.querySelectorAll('.text span').length") > 22_000
    tab_to(browser, "[role=slider]")
    browser.press("PageUp")
    browser.shows("token 501 of 10,001")
    token, pane = browser.box(".text .at"), browser.box(".text")
    assert pane["top"] <= token["top"] < token["bottom"] <= pane["bottom"]
    tab_to(browser, ".text .mark")
    browser.shows("hint 1")
    points = browser.get("document.querySelector('.lane .controlled').getAttribute('d').length")
    assert points < 20_000  # a picture of it, not ten thousand points
