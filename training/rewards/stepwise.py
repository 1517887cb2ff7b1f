"""Verifiable stepwise rewards (VSRM, arXiv 2508.10293): what each step changed in the chance of being right.

The chance at a cut is the share of right answers when the thinking ends there. Cues and constants are the paper's;
where the reward of a step stands is not: theirs is at the step's first token, ours at its last, so that the returns of
the step's own tokens hold it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

CUES = (
    *("wait", "but", "alternatively", "however", "hmm", "let me double-check", "but wait", "hold on", "looking back"),
    *("seems solid", "similarly", "that's correct but", "that seems right", "wait but", "So"),
)
"""What begins a step; a cue in small letters may also begin with a capital."""
FLOOR, SPACING = 1000, 400
"""Characters before the first cut, and between two."""
FLAT, LOOK_AHEAD, DECAY = 1e-5, 4, 0.7

_END = re.compile(r"[.!?\n]\s*")


def cuts(thinking: str, floor: int = FLOOR, spacing: int = SPACING, cues: Sequence[str] = CUES) -> list[int]:
    """Where the thinking is cut: characters, each just after the sentence that ends before a cue."""
    spelt = {form for cue in cues for form in (cue, cue[:1].upper() + cue[1:])}
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(spelt, key=len, reverse=True)))})\b")
    ends = [found.end() for found in _END.finditer(thinking)]
    made: list[int] = []
    for cue in pattern.finditer(thinking, floor):
        place = max((end for end in ends if end <= cue.start()), default=0)
        if 0 < place < len(thinking.rstrip()) and place - (made[-1] if made else -spacing) >= spacing:
            made.append(place)
    return made


def step_rewards(chances: Sequence[float], look_ahead: int = LOOK_AHEAD, ineffective: float = 0.0) -> list[float]:
    """The reward of each step between two cuts; `chances` are those at the cuts, and last that of the whole thinking.

    A step that changes nothing shares, discounted, in the change that comes within the next `look_ahead` steps.
    ineffective: what it loses if none comes, and the answer was right more often than not already; ours.
    """
    steps = [after - before for before, after in pairwise(chances)]
    rewards = [_reward(chances, steps, j, look_ahead) for j in range(len(steps))]
    return [-ineffective if not r and before >= 0.5 else r for before, r in zip(chances, rewards, strict=False)]


def _reward(chances: Sequence[float], steps: Sequence[float], j: int, look_ahead: int) -> float:
    for k in range(j, len(steps)):
        if abs(steps[k]) >= FLAT:
            return steps[k] * DECAY ** (k - j)
        if k - j == look_ahead:
            return 0.0
    return float((chances[-1] - chances[j]) * DECAY ** (len(steps) - j - 1))


def settled_at(chances: Sequence[float], tolerance: float = 0.1) -> int:
    """The earliest cut from which stopping is as good as going on to the end: what comes after it is overthinking."""
    return next(j for j, chance in enumerate(chances) if chance >= chances[-1] - tolerance)
