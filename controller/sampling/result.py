"""What the samples of one prompt came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..trace import GenerationResult, Usage


@dataclass(frozen=True, slots=True)
class StopDecision:
    """A sample was stopped after so many tokens of its own, or (sample None) the answer stands after so many in all."""

    sample: int | None
    reason: str
    position: int


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What the samples of one prompt came to.

    votes: weight of each answer, heaviest first; that is the answer, which is empty if nobody voted. samples: in the
    order they began; those that were stopped have `finish_reason` "stopped", and what a branch goes on from counts
    only as `reprefilled`. usage: of all samples; the prompt counts once for each, though it may be read once. trace:
    who was stopped when and why, then why the answer stands.
    """

    answer: str
    votes: dict[str, float]
    samples: tuple[GenerationResult, ...]
    usage: Usage
    trace: tuple[StopDecision, ...]


def sum_usage(usages: Iterable[Usage]) -> Usage:
    """The sum of usages, kind by kind."""
    listed = list(usages)
    return Usage(**{kind.name: sum(getattr(usage, kind.name) for usage in listed) for kind in fields(Usage)})
