"""Preference pairs of completions of one question.

AdaR1 (arXiv 2504.21659): which kind of thinking a question wants, and brevity within it. MAH-DPO: one objective each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from .traces import SampledTrace

Level = Literal["group", "instance", "accuracy", "brevity", "format"]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one question, the better first, and by what they were compared."""

    level: Level
    chosen: SampledTrace
    rejected: SampledTrace


def make_pairs(
    long: Sequence[SampledTrace],
    short: Sequence[SampledTrace],
    rng: Random,
    groups: int = 4,
    instances: int = 2,
    least: float = 0.0,
) -> list[PreferencePair]:
    """The pairs of one question from as many long as short completions; none if neither kind ever solves it.

    groups, instances: most pairs of each level. Long is preferred only where it is right more often than by chance of
    half a sample. Chosen ones are right; rejected ones are wrong if any of them are. least: where a smaller share of
    the preferred kind is right, no pair speaks for brevity: what is not yet learnt must not be learnt short.
    """
    right_long, right_short = sum(t.right for t in long), sum(t.right for t in short)
    if not right_long and not right_short:
        return []
    margin = 1 / (2 * len(long))
    better, worse = (long, short) if right_long / len(long) - right_short / len(short) > margin else (short, long)
    solved = sum(t.right for t in better) >= least * len(better)
    if better is short and not solved:
        return []
    good, bad = [t for t in better if t.right and t.whole], [t for t in worse if not t.right] or list(worse)
    crossed = [(chosen, rejected) for chosen in good for rejected in bad]
    made = [PreferencePair("group", *both) for both in rng.sample(crossed, min(groups, len(crossed)))]
    if good and solved:
        winner = min(good, key=lambda t: t.length)
        losers = [t for t in better if not t.right] or [t for t in good if t.length > winner.length]
        losers = sorted(losers, key=lambda t: -t.length)[:instances]
        made += [PreferencePair("instance", winner, loser) for loser in losers]
    return made


def objective_pairs(
    objective: str, traces: Sequence[SampledTrace], rng: Random, most: int, gap: float, least: float = 0.0
) -> list[PreferencePair]:
    """At most `most` pairs of one question's completions that differ in one objective.

    accuracy: right before wrong. brevity: among right ones, brief before those that are longer by the share `gap`, if
    the share `least` of the completions is right; see `make_pairs`. format: ended by the model before broken off.
    """
    whole = [t for t in traces if t.whole]
    right = [t for t in whole if t.right]
    if objective == "accuracy":
        crossed = [(good, bad) for good in right for bad in whole if not bad.right]
    elif objective == "brevity":
        taught = right if len(right) >= least * len(traces) else []
        crossed = [(brief, long) for brief in taught for long in taught if long.length > (1 + gap) * brief.length]
    else:
        crossed = [(good, bad) for good in whole for bad in traces if not bad.whole]
    level: Level = objective  # type: ignore[assignment]
    return [PreferencePair(level, *both) for both in rng.sample(crossed, min(most, len(crossed)))]
