"""Pages in a real, headless browser: what its console reports, and how their text is laid out."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")

_SWITCHES = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --enable-logging=stderr".split()
)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

# Rectangles of all visible lines of text: those that overlap, are cut off, or have less contrast than WCAG's 4.5.
_LAYOUT = """
const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(rgb(color)[i] / 255), 0);
const lines = [];
const report = { overlaps: [], clipped: [], faint: [] };
document.querySelectorAll("details").forEach((node) => { node.open = true; });
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const parent = node.parentElement;
  if (!node.data.trim() || !parent.checkVisibility()) continue;
  if (parent.closest("script, style, option, .skip, details caption")) continue;
  const text = node.data.trim().slice(0, 40);
  let back = parent;
  const behind = () => getComputedStyle(back).backgroundColor;
  while (back !== document.documentElement && rgb(behind())[3] === 0) back = back.parentElement;
  const both = [light(getComputedStyle(parent).color), light(behind())];
  if ((Math.max(...both) + 0.05) / (Math.min(...both) + 0.05) < 4.5) report.faint.push(text);
  for (let box = parent; box !== document.body; box = box.parentElement) {
    const hides = getComputedStyle(box).overflowX === "hidden";
    if (hides && box.scrollWidth > box.clientWidth + 1) report.clipped.push(text);
  }
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const r of range.getClientRects()) {
    // The box of a line is higher than its letters.
    const inset = Math.min(4, r.height / 4);
    const [left, right, top, bottom] = [r.left + 1, r.right - 1, r.top + inset, r.bottom - inset];
    if (left < right) lines.push({ text, left, right, top, bottom });
  }
}
lines.sort((a, b) => a.top - b.top);
lines.forEach((a, i) => {
  for (let j = i + 1; j < lines.length && lines[j].top < a.bottom; j++) {
    const b = lines[j];
    if (a.left < b.right && b.left < a.right) report.overlaps.push([a.text, b.text]);
  }
});
report.lines = lines.length;
report.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
report.broken = [...document.images].filter((image) => !image.complete || !image.naturalWidth).length;
report.dark = light(getComputedStyle(document.body).backgroundColor) < 0.5;
"""


def load_page(path: Path, width: int = 1280, dark: bool = False) -> tuple[str, list[str]]:
    """Open a page; return its document after loading, and the messages of its console."""
    assert PROGRAM is not None
    scheme = ["--force-dark-mode"] if dark else []
    command = [PROGRAM, *_SWITCHES, *scheme, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def measure_layout(path: Path, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """Return what is wrong with a page's layout: overlapping, clipped and faint texts, broken images, and so on."""
    text = _POLICY.sub("", path.read_text(encoding="utf-8"))  # it forbids the script that measures
    code = f"addEventListener('load', () => {{ {_LAYOUT} document.title = JSON.stringify(report); }});"
    copy = path.with_name(f"{path.stem}-measured.html")
    copy.write_text(text.replace("</body>", f"<script>{code}</script></body>"), encoding="utf-8")
    document, console = load_page(copy, width, dark)
    assert console == []
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)
    assert title is not None
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found
