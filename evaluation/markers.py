"""Linguistic markers in right and wrong thinking (Think Deep, Think Fast, arXiv 2504.14047).

The paper's lists of words were not found; these are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import fmean

_WORDS = {
    "hedging": "maybe perhaps possibly probably might likely seems unsure uncertain guess|not sure|i think|could be",
    "thinking": "wait hmm hm alternatively actually|hold on|let me think|let me check|let me see|on second thought",
    "discourse": "first second next then therefore thus hence so because since finally however|for example",
}
MARKERS: Mapping[str, re.Pattern[str]] = {
    kind: re.compile(rf"\b(?:{'|'.join([*words.split('|')[0].split(), *words.split('|')[1:]])})\b", re.IGNORECASE)
    for kind, words in _WORDS.items()
}


def count_markers(thinking: str) -> dict[str, int]:
    """The number of `words` of a thinking, and of its markers by kind."""
    found = {kind: len(pattern.findall(thinking)) for kind, pattern in MARKERS.items()}
    return {"words": len(thinking.split()), **found}


def compare_markers(thinkings: Iterable[tuple[bool, Mapping[str, int]]]) -> dict[str, dict[str, float]] | None:
    """Mean words of right and wrong thinking, and markers per 1,000 of them, from pairs of right and `count_markers`.

    None unless some are right and some are wrong.
    """
    groups: dict[str, list[Mapping[str, int]]] = {"right": [], "wrong": []}
    for right, counts in thinkings:
        groups["right" if right else "wrong"].append(counts)
    if not all(groups.values()):
        return None
    words = {name: fmean(counts["words"] for counts in group) for name, group in groups.items()}
    rates = {
        kind: {
            name: fmean(1000 * counts[kind] / max(1, counts["words"]) for counts in group)
            for name, group in groups.items()
        }
        for kind in MARKERS
    }
    return {"words": words, **rates}


def format_markers(figures: Mapping[str, Mapping[str, float]]) -> str:
    """What `compare_markers` found, in one line."""
    named = {"words of thinking" if kind == "words" else kind: one for kind, one in figures.items()}
    pairs = (f"{name} {one['right']:.1f} / {one['wrong']:.1f}" for name, one in named.items())
    return f"{', '.join(pairs)}; markers per 1,000 words"
