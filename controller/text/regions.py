r"""Regions of growing thinking that must not be cut: code, tool calls, mathematics and JSON.

Each part of the text is scanned once. Inline mathematics and JSON end at a blank line at the latest, code and display
mathematics after `_LONGEST` characters, so that a delimiter that a model forgot does not protect all that follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .tool_calls import REGIONS

TOOL_CALL = "tool call"
_LONGEST = {"code": 12_000, "math": 2_000}
_DISPLAY = ("\\]", "$$", "\\end{")
_PAIRS = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
_OPENINGS = dict(REGIONS)
_TOKEN = re.compile(
    "|".join(re.escape(text) for pair in REGIONS for text in pair if text)
    + r"|```|\n(?:[ \t]*\n)+|\n|\\begin\{|\\end\{|\\boxed\{|\\.|\$\$|\$|\{|\}|\[|\]|\""
)  # each alternative begins with a character, as a search skips all others then
_MARGIN = 40
"""Characters at the end that later text may turn into a marker; longer than every one."""


@dataclass(slots=True)
class _State:
    """What is open: its kind, what closes it, and how deep its brackets are."""

    kind: str | None = None
    closing: str = ""
    depth: int = 0
    size: int = 0  # characters since it was opened
    paragraph: bool = True  # nothing of the paragraph has been seen
    quoted: bool = False  # the bracketed paragraph holds a quotation mark, as JSON does

    def scan(self, text: str, stop: int) -> int:
        """Process the tokens that begin before `stop`; return where the next one may begin."""
        at = 0
        for match in _TOKEN.finditer(text):
            start, end = match.span()
            if start >= stop:
                break
            if self.paragraph and text[at:start].strip():
                self.paragraph = False
            self.size += end - at
            at = end
            self._take(match[0], text[at : at + 1])
        rest = text[at:stop]
        self.size += len(rest)
        if self.paragraph and rest.strip():
            self.paragraph = False
        return max(at, stop)

    def _take(self, token: str, following: str) -> None:
        if self.kind is not None and self.size > _LONGEST.get(self.kind, self.size):
            self._close()
        if self.kind in ("code", TOOL_CALL):
            if token == self.closing:
                self._close()
        elif token[0] == "\n":
            if self.closing in ("$", "}") or (len(token) > 1 and self.closing not in _DISPLAY):
                self._close()
        elif self.kind == "math":
            self._take_in_math(token)
        elif self.kind == "JSON":
            self._take_in_json(token)
        elif token != "$" or (following and following not in " \t0123456789"):  # not the price of something
            self._open(token)
        if token != "\n":
            self.paragraph = token[0] == "\n"

    def _take_in_math(self, token: str) -> None:
        if self.closing == "}":
            self.depth += {"{": 1, "\\boxed{": 1, "\\begin{": 1, "\\end{": 1, "}": -1}.get(token, 0)
            if self.depth == 0:
                self._close()
        elif token == self.closing:
            self._close()

    def _take_in_json(self, token: str) -> None:
        self.depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token, 0)
        self.quoted = self.quoted or token == '"'
        if self.depth == 0:
            self._close()

    def _open(self, token: str) -> None:
        self.size = 0
        if token == "```":
            self.kind, self.closing = "code", "```"
        elif token in _OPENINGS:
            self.kind, self.closing = TOOL_CALL, _OPENINGS[token]
        elif token in _PAIRS:
            self.kind, self.closing = "math", _PAIRS[token]
        elif token == "\\begin{":
            self.kind, self.closing = "math", "\\end{"
        elif token == "\\boxed{":
            self.kind, self.closing, self.depth = "math", "}", 1
        elif token in "{[" and self.paragraph:
            self.kind, self.closing, self.depth = "JSON", "", 1

    def _close(self) -> None:
        self.kind, self.closing, self.depth, self.quoted = None, "", 0, False


class ProtectedRegions:
    """Follows a growing text; `open` is the kind of region that is open at its end.

    `settled` says whether nothing was open or begun there when `open` was last asked for.
    """

    def __init__(self) -> None:
        self._state = _State()
        self._rest = ""
        self.settled = True

    def feed(self, text: str) -> None:
        """Append text."""
        buffer = self._rest + text
        stop = max(0, len(buffer) - _MARGIN)
        self._rest = buffer[self._state.scan(buffer, stop) :] if stop else buffer

    @property
    def open(self) -> str | None:
        """The kind of region that is open at the end (code, tool call, math, JSON), or None."""
        at = self._state
        state = _State(
            at.kind, at.closing, at.depth, at.size, at.paragraph, at.quoted
        )  # `replace` takes 6 times as long
        state.scan(self._rest, len(self._rest))
        self.settled = state.kind is None and not any(c in self._rest[-_MARGIN:] for c in "<[")  # perhaps of a call
        if state.kind != TOOL_CALL and self._rest.endswith("`") and re.search(r"(?:^|\n)`{1,2}$", self._rest):
            return "code"
        too_long = state.kind is not None and state.size > _LONGEST.get(state.kind, state.size)
        return None if too_long or (state.kind == "JSON" and not state.quoted) else state.kind


def unclosed_region(text: str) -> str | None:
    """The kind of region that is open at the end of a text, or None."""
    regions = ProtectedRegions()
    regions.feed(text)
    return regions.open
