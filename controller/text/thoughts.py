"""The thinking of one sequence as it grows: thoughts, boundaries and regions that must not be cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Signals
from .tokenizer_adapter import TokenFlags, TokenizerAdapter, word_pattern

REFLECTION_CUES = (
    "wait",
    "hmm",
    "alternatively",
    "but wait",
    "hold on",
    "let me double-check",
    "let me double check",
    "let me verify",
    "let me check",
    "but let me",
    "let me recheck",
    "actually",
    "on second thought",
    "to be sure",
    "just to be sure",
    "looking back",
)
"""How reflective thoughts begin (TrimR, Speculative Thinking and VSRM use such lists); matched as whole words."""
_CUE = word_pattern(REFLECTION_CUES)
_TAIL = 400


@dataclass(frozen=True, slots=True)
class Thought:
    """Thinking between two boundaries."""

    text: str
    start: int  # first token, counted in thinking tokens; `end` is the one after the last
    end: int
    reflective: bool  # whether it opens with a reflection cue


def unclosed_region(text: str) -> str | None:
    """The kind of region that is still open at the end of a text (code, tool call, math, JSON), or None."""
    if text.count("```") % 2 or re.search(r"(?:^|\n)`{1,2}$", text):
        return "code"
    if text.rfind("<tool_call>") > text.rfind("</tool_call>"):
        return "tool call"
    for opening, closing in (("\\[", "\\]"), ("\\(", "\\)"), ("\\begin{", "\\end{")):
        if text.rfind(opening) > text.rfind(closing):
            return "math"
    if text.count("$$") % 2:
        return "math"
    line = text.rsplit("\n", 1)[-1]
    dollars = [m.start() for m in re.finditer(r"(?<![\\$])\$(?!\$)", line)]
    if len(dollars) % 2 and not line[dollars[-1] + 1 : dollars[-1] + 2].isdigit():
        return "math"
    if "\\boxed{" in line and _depth(line[line.rfind("\\boxed{") :]) > 0:
        return "math"
    paragraph = text.rsplit("\n\n", 1)[-1].lstrip()
    return "JSON" if paragraph[:1] in ("{", "[") and _depth(paragraph) > 0 and '"' in paragraph else None


def _depth(text: str) -> int:
    return sum({"{": 1, "[": 1, "}": -1, "]": -1}.get(c, 0) for c in text)


class ThinkingState:
    """The thinking so far; grows token by token and decodes only at boundaries."""

    def __init__(self, codec: TokenizerAdapter) -> None:
        self.codec = codec
        self.ids: list[int] = []
        self.signals: list[Signals | None] = []  # as long as `ids` where an engine reports them, else empty
        self.thoughts: list[Thought] = []
        self.boundary = "token"
        self._start = self._retractable_from = 0
        self._line_empty = True
        self._after_digit = False
        self._risky = False  # a character that can open a protected region has been seen

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> str:
        """All thinking so far."""
        return self.codec.decode(self.ids)

    def tail(self, tokens: int = _TAIL) -> str:
        """Text of the last tokens."""
        return self.codec.decode(self.ids[-tokens:])

    @property
    def ends_line(self) -> bool:
        """Whether the last token may have ended a line, or there is none yet."""
        return self._line_empty

    @property
    def protected(self) -> str | None:
        """The kind of region that is open at the end, or None."""
        return unclosed_region(self.text) if self._risky else None

    def add(self, token: int, signals: Signals | None = None) -> None:
        """Append a sampled token; sets `boundary` to what it ended: `token`, `sentence` or `thought`."""
        flags = self.codec.flags(token)
        self.ids.append(token)
        if signals is not None:
            self.signals += [None] * (len(self.ids) - 1 - len(self.signals))
            self.signals.append(signals)
        after_digit, self._after_digit = self._after_digit, bool(flags & TokenFlags.DIGIT)
        if not flags or (after_digit and flags & TokenFlags.POINT):
            self.boundary, self._line_empty = "token", False
            return
        if flags & TokenFlags.FENCE:
            self._risky = True
        ended = flags & TokenFlags.BLANK or (flags & TokenFlags.NEWLINE and self._line_empty)
        self._line_empty = bool(flags & TokenFlags.NEWLINE)
        if ended and len(self.ids) - self._start > 1:
            self._end_thought()
            self.boundary = "thought"
        else:
            self.boundary = "sentence" if flags & (TokenFlags.SENTENCE | TokenFlags.NEWLINE) else "token"

    def retractable(self, count: int) -> int:
        """How many of the last `count` tokens may be dropped: those after the last forced one."""
        return min(count, len(self.ids) - self._retractable_from)

    def retract(self, count: int) -> int:
        """Drop the last `count` tokens, as far as they may be dropped; return how many were."""
        count = self.retractable(count)
        del self.ids[len(self.ids) - count :]
        del self.signals[len(self.ids) :]
        while self.thoughts and self.thoughts[-1].end > len(self.ids):
            self._start = self.thoughts.pop().start
        self._line_empty = self._start == len(self.ids)
        return count

    def add_forced(self, tokens: Sequence[int]) -> None:
        """Append forced tokens; they end the current thought and belong to none."""
        if len(self.ids) > self._start:
            self._end_thought()
        self.ids.extend(tokens)
        self._start = self._retractable_from = len(self.ids)
        self._line_empty = True

    def _end_thought(self) -> None:
        text = self.codec.decode(self.ids[self._start :])
        if text.strip():
            self.thoughts.append(Thought(text, self._start, len(self.ids), bool(_CUE.match(text))))
        self._start = len(self.ids)
