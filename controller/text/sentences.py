"""Sentences of a text: where each ends, where its conclusion begins, and whether it only supposes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .cues import LANGUAGES, either

_END = re.compile(r"[.!?\n。！？；](?:(?<=[\n。！？；])|(?<![.!?].)(?<!\d!)[.!?]*(?:[*\"'”’)\]}$]|\\\)|\\\])*(?=\s))")
_LONGEST_DISPLAY = 2_000  # characters
_DISPLAY = re.compile(r"\s*\\\[")
_ABBREVIATED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|approx|No|Eq|e\.g|i\.e)|^\s*\W*\d{1,2}|"
    r"(?<!is )(?<!['’]s )(?<!be )(?<![Ss]o )(?<!ith )(?<!ion )(?<!ice )(?<!wer )(?<!hus )(?<!nce )"
    r"(?<![:→,] )\b[A-Z])\.$"
)


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    r"""Start and end of each sentence; a line break ends one, except in display mathematics."""
    start = 0
    for match in _END.finditer(text):
        if match.start() < start:
            continue
        end = match.end()
        ahead = _DISPLAY.match(text, end) if match[0] == "\n" and text[start:end].rstrip().endswith(":") else None
        opened = text.rfind("\\[", max(start, end - _LONGEST_DISPLAY), ahead.end() if ahead else end)
        closed = text.find("\\]", opened, opened + _LONGEST_DISPLAY) if opened >= 0 else -1
        if closed >= end:
            end = closed + 2
        elif match[0] == "." and _ABBREVIATED.search(text[max(start, end - 9) : end]):
            continue
        if text[start:end].strip():
            yield start, end
        start = end
    if text[start:].strip():
        yield start, len(text)


DENIED = re.compile(
    r"(?i)\b(?:not|isn't|wasn't|can't|neither|nor|instead of|rather than|whether|"
    r"(?:no need|needing|having) to (?:choose|consider|pick|select))\s+(?:an?\s+|the\s+)?"
    r"(?:\(?[A-J]\)?,? (?:or|nor|and) )*$"
)
"""What denies that which stands behind it."""
_TURN = re.compile(rf"(?:{either('turns')})")
_TURN_SIGNALS = tuple(signal for language in LANGUAGES for signal in language.turn_signals)
_SUPPOSED = re.compile(rf"(?:{either('supposed')})")


def find_turn(lower: str) -> int:
    """Where the conclusion begins in a sentence in small letters: behind its last "so" or the like; 0 for none."""
    if not any(map(lower.__contains__, _TURN_SIGNALS)):
        return 0
    return max((cue.end() for cue in _TURN.finditer(lower)), default=0)


def is_supposed(lower: str, turn: int) -> bool:
    """Whether the conclusion of a sentence in small letters, which begins at `turn`, only supposes or denies."""
    return _SUPPOSED.search(lower[turn:]) is not None
