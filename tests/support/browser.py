"""A real browser for the tests of pages, driven through the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")

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
READY = (
    "document.readyState === 'complete' && location.protocol === 'file:' && "
    "(document.scripts.length === 0 || document.querySelector('html[data-ready]') !== null)"
)
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
        """Load a page afresh and wait until it is there, drawn if that is its script's work."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri() + at)
        self.wait(READY)

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

    def screenshot(self) -> Any:
        """What the window shows: [height, width, 3] of bytes."""
        picture = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

    def shows(self, *words: str) -> None:
        """Wait until the tooltip says all of this; nothing: until it is gone."""
        said = "(document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText)"
        self.wait(f"{json.dumps(words)}.every((word) => {said}.includes(word))" if words else f"{said} === ''")

    def close(self) -> None:
        os.write(self._out, b'{"id": 0, "method": "Browser.close"}\0')
        self._process.wait(PATIENCE)
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of pages; `Browser.open` starts each of them afresh."""
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def focused(browser: Browser, what: str = "getAttribute('aria-label')") -> Any:
    return browser.get(f"document.activeElement.{what}")


def tab_to(browser: Browser, condition: str) -> None:
    """Walk with the Tab key alone until an element is reached."""
    for _ in range(40):
        browser.press("Tab")
        if browser.get(f"document.activeElement.matches({condition!r})"):
            return
    raise AssertionError(f"{condition} cannot be reached with the Tab key")
