"""Preference pairs of AdaR1 (arXiv 2504.21659): which kind of thinking a question wants, and brevity within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from .traces import Trace

Level = Literal["group", "instance"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one question, the better first, and at which level they were compared."""

    level: Level
    chosen: Trace
    rejected: Trace


def pairs_of(
    long: Sequence[Trace], short: Sequence[Trace], rng: Random, groups: int = 4, instances: int = 2
) -> list[Pair]:
    """The pairs of one question from as many long as short completions; none if neither kind ever solves it.

    groups, instances: most pairs of each level. Long is preferred only where it is right more often than by chance of
    half a sample. Chosen ones are right; rejected ones are wrong if any of them are.
    """
    right_long, right_short = sum(t.right for t in long), sum(t.right for t in short)
    if not right_long and not right_short:
        return []
    margin = 1 / (2 * len(long))
    better, worse = (long, short) if right_long / len(long) - right_short / len(short) > margin else (short, long)
    good, bad = [t for t in better if t.right and t.whole], [t for t in worse if not t.right] or list(worse)
    crossed = [(chosen, rejected) for chosen in good for rejected in bad]
    made = [Pair("group", *both) for both in rng.sample(crossed, min(groups, len(crossed)))]
    if good:
        winner = min(good, key=lambda t: t.length)
        losers = [t for t in better if not t.right] or [t for t in good if t.length > winner.length]
        losers = sorted(losers, key=lambda t: -t.length)[:instances]
        made += [Pair("instance", winner, loser) for loser in losers]
    return made
