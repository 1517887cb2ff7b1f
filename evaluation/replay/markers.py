"""Linguistic markers in right and in wrong thinking (Think Deep, Think Fast, arXiv 2504.14047).

The paper finds that right answers of reasoning models come with shorter thinking, fewer hedges and fewer words of
thinking, and more discourse markers. Its lists of words were not found; these are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from .run import ReplayedRow

_WORDS = {
    "hedging": "maybe perhaps possibly probably might likely seems unsure uncertain guess|not sure|i think|could be",
    "thinking": "wait hmm hm alternatively actually|hold on|let me think|let me check|let me see|on second thought",
    "discourse": "first second next then therefore thus hence so because since finally however|for example",
}
MARKERS: Mapping[str, re.Pattern[str]] = {
    kind: re.compile(rf"\b(?:{'|'.join([*words.split('|')[0].split(), *words.split('|')[1:]])})\b", re.IGNORECASE)
    for kind, words in _WORDS.items()
}


def compare_markers(found: Sequence[ReplayedRow]) -> dict[str, dict[str, float]] | None:
    """Mean words of thinking, and markers per 1,000 of them by kind, of right and of wrong rows.

    Only rows with a right answer to compare with count; None unless some are right and some are wrong.
    """
    groups = {
        name: [one.row.thinking for one in found if one.row.gold is not None and one.right_full is right]
        for name, right in (("right", True), ("wrong", False))
    }
    if not all(groups.values()):
        return None
    figures = {"words": {name: fmean(len(text.split()) for text in texts) for name, texts in groups.items()}}
    for kind, pattern in MARKERS.items():
        figures[kind] = {
            name: fmean(1000 * len(pattern.findall(text)) / max(1, len(text.split())) for text in texts)
            for name, texts in groups.items()
        }
    return figures
