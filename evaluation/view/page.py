"""One self-contained HTML page out of records: template, style, script and data in a single file.

The page asks the network for nothing and could not: its content security policy allows its own style and script by
their hashes and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .record import TraceRecord
from .trace_layout import record_data

SIGN = '<meta name="generator" content="tersely view">'
"""What tells a page of ours from any other file."""
_HEAD = 2048
_SCRIPTS = ("dom.js", "tip.js", "decisions.js", "text.js", "timeline.js", "record.js", "list.js")
_PLACE = re.compile(r"<!--(\w+)-->")


def page(records: Sequence[TraceRecord], name: str) -> str:
    """The page of some records; `name` is what it calls them, the trace file's name say."""
    name = name.encode(errors="replace").decode()  # a file's name may hold bytes that are no text
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "})();\n"
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    parts = {
        "SIGN": SIGN,
        "POLICY": f"{policy}; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(name),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _embedded({"name": name, "records": [record_data(record) for record in records]}),
    }
    return _PLACE.sub(lambda place: parts[place[1]], _asset("page.html"))


def is_page(path: Path) -> bool:
    """Whether a file is a page that was made here."""
    with path.open("rb") as file:
        return SIGN.encode() in file.read(_HEAD)


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(data: object) -> str:
    """JSON that may stand in a script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
