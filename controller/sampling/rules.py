"""Rules by which samples become an answer: majority, the shortest thinkings, a vote before thinking; rules by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from ...errors import OptionError, unknown
from ..registry import load_add_ons
from ..types import Capability
from .deepconf import DeepConf, DeepConfOffline
from .vote import ROOT, AggregationRule, Branch, VoteState, tally

ENTRY_POINTS = "tersely.sampling_rules"


@dataclass(frozen=True, slots=True)
class Majority:
    """Majority vote (self-consistency, arXiv 2203.11171), stopped once the leader cannot be overtaken.

    Of the methods without a verifier the robust one for reasoning models (Think Deep, Think Fast, arXiv 2504.14047). A
    `lazy` vote starts only as many samples as could settle it: the fewest tokens, but one batch after another.
    """

    name: ClassVar[str] = "majority"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    early: bool = True  # stop early, which never changes the answer
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.lazy and not self.early:
            raise OptionError("a lazy vote stops early; accepted: early=True with lazy=True")

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        return _MajorityVote(k, self)


class _MajorityVote(VoteState):
    def __init__(self, k: int, rule: Majority) -> None:
        super().__init__(k, rule.early)
        self.rule = rule

    def start_samples(self) -> list[Branch]:
        count = self.k - self.started
        if self.rule.lazy and count:
            first, second = [*self.tally().values(), 0.0, 0.0][:2]
            # With this many votes for the leader, the other samples could not overtake it.
            count = min(count, math.floor((count - (first - second)) / 2) + 1)
        return self._start([ROOT] * count)


@dataclass(frozen=True, slots=True)
class ShortMofK:
    """short-m@k (arXiv 2505.17813): the first `m` samples to finish thinking vote, the others are stopped then.

    Ties go to the first of them, and a settled vote stops the samples that are still running.
    """

    name: ClassVar[str] = "short"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    m: int = 3

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        if not 1 <= self.m <= k:
            raise OptionError(f"m is {self.m} of {k} samples; accepted: 1 to {k}")
        return _FirstVote(k, self.m)


class _FirstVote(VoteState):
    """Only the first m samples to finish thinking vote."""

    def __init__(self, k: int, m: int) -> None:
        super().__init__(k)
        self.m = m
        self._first: list[int] = []

    def close_thinking(self, sample: int) -> None:
        if len(self._first) == self.m:
            return
        self._first.append(sample)
        if len(self._first) == self.m:
            self._stop(self.running.difference(self._first), f"{self.m} others have finished thinking")

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        super().finish(sample, answer if sample in self._first else None, thoughts)

    def remaining(self) -> float:
        return self.m - len(self.votes)

    def tally(self) -> dict[str, float]:
        """See `VoteState.tally`; ties go to the sample that finished thinking first."""
        return tally(sorted(self.votes, key=lambda vote: self._first.index(vote.sample)))


@dataclass(frozen=True, slots=True)
class VoteFirst:
    """Samples without thinking, and only where they disagree samples that think, whose majority counts then.

    Of k samples the `first` do not think. Their answer stands if all give the same one. A rule of practice without a
    paper that we know of.
    """

    name: ClassVar[str] = "vote-first"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    first: int = 3

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        if not 2 <= self.first < k:
            raise OptionError(f"first is {self.first} of {k} samples; accepted: 2 to {k - 1}")
        return _VoteFirst(k, self.first)


class _VoteFirst(VoteState):
    def __init__(self, k: int, first: int) -> None:
        super().__init__(k)
        self.first = first

    def start_samples(self) -> list[Branch]:
        return self._start([Branch(effort="none")] * self.first) if not self.started else super().start_samples()

    def tally(self) -> dict[str, float]:
        thought = [vote for vote in self.votes if vote.sample >= self.first and vote.answer]
        return tally(sorted(thought or self.votes, key=lambda vote: vote.sample))

    def _settle(self) -> None:
        if self.started > self.first:
            super()._settle()
        elif not self.running and len(votes := self.tally()) == 1 and all(vote.answer for vote in self.votes):
            self._decide(f"all {self.first} samples without thinking say {next(iter(votes))}")


RULES: Mapping[str, AggregationRule] = {
    rule.name: rule for rule in (Majority(), ShortMofK(), VoteFirst(), DeepConf(), DeepConfOffline())
}


def resolve_rule(rule: str | AggregationRule) -> AggregationRule:
    """A rule by its name, also of the entry points, or as it is; raises OptionError for an unknown name."""
    if not isinstance(rule, str):
        return rule
    if rule in RULES:
        return RULES[rule]
    add_ons = load_add_ons(ENTRY_POINTS)
    if rule not in add_ons:
        raise unknown("rule", rule, [*RULES, *add_ons])
    return cast(AggregationRule, add_ons[rule]())
