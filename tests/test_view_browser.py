"""The trace viewer's page in a real browser, driven through the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.trace import Decision, Usage
from tersely.evaluation.view.files import write
from tersely.evaluation.view.page import page
from tersely.evaluation.view.record import Record, Run, Segment, Token

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")

SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
).split()
# The browser reads its commands from file 3 and writes its replies to file 4.
LAUNCH = (
    "import os, sys; [os.dup2(int(end), to) for end, to in zip(sys.argv[1:3], (3, 4))]; "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "PageUp": 33, "End": 35, "ArrowRight": 39, "ArrowDown": 40}
PATIENCE = 120.0  # seconds; only a browser that hangs is given up

LEAST_CONTRAST = """(() => {
  // Of all text shown, against the first opaque background behind it (WCAG 2.2, 1.4.3); 4.5 is asked for.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(color[i] / 255), 0);
  const found = [];
  for (const node of document.querySelectorAll("body *:not(script, style, noscript, option)")) {
    if (![...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()) || !node.getClientRects().length) continue;
    let back = node;
    while (rgba(getComputedStyle(back).backgroundColor)[3] < 255) back = back.parentElement;
    const [front, behind] = [getComputedStyle(node).color, getComputedStyle(back).backgroundColor].map(rgba).map(light);
    const ratio = (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
    found.push([ratio, `${node.className}: ${node.textContent.slice(0, 30)}`]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
})()"""


class Browser:
    """One headless browser with one tab; `events` holds what it reported since the last page."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        assert PROGRAM is not None
        command = [
            sys.executable,
            "-I",
            "-c",
            LAUNCH,
            *map(str, theirs),
            PROGRAM,
            *SWITCHES,
            f"--user-data-dir={profile}",
        ]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=theirs, stdin=quiet, stdout=quiet, stderr=quiet)
        for end in (theirs_in, theirs_out, *theirs):
            os.close(end)
        self._buffer, self._calls = b"", 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser is gone"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def get(self, expression: str) -> Any:
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.get(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def open(self, path: Path, width: int = 1280, scheme: str = "light", at: str = "") -> None:
        """Load a page afresh and wait until its script has drawn it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri() + at)
        self.wait("document.querySelector('html[data-ready]') !== null")

    def press(self, key: str, times: int = 1) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": "\r"} if key == "Enter" else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def box(self, selector: str) -> dict[str, float]:
        """Where an element lies in the window: left, right, top, bottom."""
        found: dict[str, float] = self.get(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        return found

    def hover(self, selector: str) -> None:
        self.get(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.box(selector)
        middle = {"x": (box["left"] + box["right"]) / 2, "y": (box["top"] + box["bottom"]) / 2}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **middle)

    def shows(self, *words: str) -> None:
        """Wait until the tooltip says all of this; nothing: until it is gone."""
        said = "(document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText)"
        self.wait(f"{json.dumps(words)}.every((word) => {said}.includes(word))" if words else f"{said} === ''")

    def close(self) -> None:
        os.write(self._out, b'{"id": 0, "method": "Browser.close"}\0')
        self._process.wait(PATIENCE)
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def run(kinds: str, size: int = 4, **more: Any) -> dict[str, Any]:
    """The parts of a run whose segments are of the kinds named, each of some words, then an answer."""
    segments, tokens = [], []
    for kind in kinds.split():
        words = [f"{kind}{i} " for i in range(size)]
        segments.append(Segment(kind=kind, text="".join(words), thinking=True))  # type: ignore[arg-type]
        if kind != "trimmed":
            tokens += words
    segments.append(Segment(kind="kept", text="It is 7.", thinking=False))
    tokens.append("It is 7.")
    return {
        "answer": "7",
        "tier": "easy",
        "finish_reason": "stop",
        "usage": Usage(thinking=len(tokens) - 1, answer=1, forced=size),
        "segments": tuple(segments),
        "tokens": tuple(
            Token(text=text, entropy=1 + math.sin(i / 9), probe={"ready": i / len(tokens)})
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
    theirs = Run(**run("kept kept kept kept kept"))
    first = Record(version=1, id="first", question="2 + 5?", uncontrolled=theirs, **ours)
    second = Record(version=1, id="second", question="</script><img src=x onerror=alert(1)> 3 + 3?", **run("kept"))
    ours = run("kept forced kept kept", 2_500, decisions=(Decision("hint", "inject", "hint 1", 2_500),))
    large = Record(version=1, id="large", question="long", uncontrolled=Run(**run("kept", 12_000)), **ours)
    found = {"several": folder / "several.html", "large": folder / "large.html"}
    write(found["several"], page([first, second], "several.jsonl"))
    write(found["large"], page([large], "large.jsonl"))
    return found


def focused(browser: Browser, what: str = "getAttribute('aria-label')") -> Any:
    return browser.get(f"document.activeElement.{what}")


def tab_to(browser: Browser, condition: str) -> None:
    """Walk with the Tab key alone until an element is reached."""
    for _ in range(40):
        browser.press("Tab")
        if browser.get(f"document.activeElement.matches({condition!r})"):
            return
    raise AssertionError(f"{condition} cannot be reached with the Tab key")


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
