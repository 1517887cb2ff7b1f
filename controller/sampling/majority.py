"""The answer that most samples give; all of them, or the first to finish thinking."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...errors import OptionError
from .confidence import ConfidenceTracker
from .vote import ROOT, Branch, VoteState, tally


@dataclass(frozen=True, slots=True)
class Majority:
    """Majority vote (self-consistency, arXiv 2203.11171), stopped once the leader cannot be overtaken.

    Stopping early never changes the answer. by_confidence: a vote weighs as much as its sample's mean confidence (see
    `ConfidenceTracker`) in place of 1. early: stop at all. lazy: begin no more samples than could settle the vote,
    and others only
    if they did not; the fewest tokens, one batch after another.
    """

    name: ClassVar[str] = "majority"
    by_confidence: bool = False
    early: bool = True
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.lazy and not self.early:
            raise OptionError("a lazy vote stops early; accepted: early=True with lazy=True")

    @property
    def signals(self) -> bool:
        """See `Rule`."""
        return self.by_confidence

    def poll(self, k: int) -> VoteState:
        """See `Rule.poll`."""
        return _Majority(k, self)


class _Majority(VoteState):
    """All samples have a say."""

    def __init__(self, k: int, rule: Majority) -> None:
        super().__init__(k, rule.early)
        self.rule = rule
        self._meters: defaultdict[int, ConfidenceTracker] = defaultdict(ConfidenceTracker)

    def draw(self) -> list[Branch]:
        """See `VoteState.draw`."""
        left = self.k - self.begun
        if self.rule.lazy and left:
            first, second = [*self.votes().values(), 0.0, 0.0][:2]
            # So many votes for the leader, and none of the rest could overtake it.
            left = min(left, math.floor((left - (first - second)) / 2) + 1)
        return self._begin([ROOT] * left)

    def read(self, sample: int, confidence: float) -> None:
        """See `VoteState.read`."""
        if self.rule.by_confidence:
            self._meters[sample].add(confidence)

    def weight(self, sample: int) -> float:
        """See `VoteState.weight`."""
        return self._meters[sample].mean if self.rule.by_confidence else 1.0


@dataclass(frozen=True, slots=True)
class ShortMofK:
    """short-m@k (arXiv 2505.17813): the first `m` to finish thinking vote, the rest are stopped there.

    Ties go to who finished thinking first. As in `Majority` a vote that is settled stops those that are still writing.
    """

    name: ClassVar[str] = "short"
    signals: ClassVar[bool] = False
    m: int = 3

    def poll(self, k: int) -> VoteState:
        """See `Rule.poll`."""
        if not 1 <= self.m <= k:
            raise OptionError(f"m is {self.m} of {k} samples; accepted: 1 to {k}")
        return _First(k, self.m)


class _First(VoteState):
    """The first m that finish thinking have a say."""

    def __init__(self, k: int, m: int) -> None:
        super().__init__(k)
        self.m = m
        self._first: list[int] = []

    def closed(self, sample: int) -> None:
        """See `VoteState.closed`."""
        if len(self._first) == self.m:
            return
        self._first.append(sample)
        if len(self._first) == self.m:
            self._stop(self.live.difference(self._first), f"{self.m} others have finished thinking")

    def ended(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        """See `VoteState.ended`."""
        super().ended(sample, answer if sample in self._first else None, thoughts)

    def left(self) -> float:
        """See `VoteState.left`."""
        return self.m - len(self.ballots)

    def votes(self) -> dict[str, float]:
        """See `VoteState.votes`; ties go to who finished thinking first."""
        return tally(sorted(self.ballots, key=lambda ballot: self._first.index(ballot.sample)))
