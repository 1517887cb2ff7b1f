"""Rules by which samples become an answer: majority, the shortest thinkings, DeepConf, and rules by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import numpy as np

from ...errors import OptionError, unknown
from ..registry import load_add_ons
from .vote import ROOT, AggregationRule, Branch, ConfidenceTracker, VoteState, tally

ENTRY_POINTS = "tersely.sampling_rules"
WARMUP = 16
WINDOW = 2048


@dataclass(frozen=True, slots=True)
class Majority:
    """Majority vote (self-consistency, arXiv 2203.11171), stopped once the leader cannot be overtaken.

    Of the methods without a verifier the robust one for reasoning models (Think Deep, Think Fast, arXiv 2504.14047). A
    `lazy` vote starts only as many samples as could settle it: the fewest tokens, but one batch after another.
    """

    name: ClassVar[str] = "majority"
    by_confidence: bool = False  # a vote weighs the mean confidence of its sample (see `ConfidenceTracker`), not 1
    early: bool = True  # stop early, which never changes the answer
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.lazy and not self.early:
            raise OptionError("a lazy vote stops early; accepted: early=True with lazy=True")

    @property
    def signals(self) -> bool:
        """See `AggregationRule.signals`."""
        return self.by_confidence

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        return _MajorityVote(k, self)


class _MajorityVote(VoteState):
    def __init__(self, k: int, rule: Majority) -> None:
        super().__init__(k, rule.early)
        self.rule = rule
        self._confidence: defaultdict[int, ConfidenceTracker] = defaultdict(ConfidenceTracker)

    def start_samples(self) -> list[Branch]:
        count = self.k - self.started
        if self.rule.lazy and count:
            first, second = [*self.tally().values(), 0.0, 0.0][:2]
            # With this many votes for the leader, the other samples could not overtake it.
            count = min(count, math.floor((count - (first - second)) / 2) + 1)
        return self._start([ROOT] * count)

    def add_token(self, sample: int, confidence: float) -> None:
        if self.rule.by_confidence:
            self._confidence[sample].add(confidence)

    def weight(self, sample: int) -> float:
        return self._confidence[sample].mean if self.rule.by_confidence else 1.0


@dataclass(frozen=True, slots=True)
class ShortMofK:
    """short-m@k (arXiv 2505.17813): the first `m` samples to finish thinking vote, the others are stopped then.

    Ties go to the first of them, and a settled vote stops the samples that are still running.
    """

    name: ClassVar[str] = "short"
    signals: ClassVar[bool] = False
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
class DeepConf:
    """Our form of DeepConf online (arXiv 2508.15260): samples below the threshold that the first ones set are stopped.

    The score of a sample, which is also its vote's weight, is its lowest mean confidence over `window` tokens in a row,
    or that of a shorter one as a whole. The threshold is the (100 - keep)th percentile of the scores of the warm-up.
    The paper measures a token's confidence by the negative mean log-probability of the 20 most likely ones; here it is
    the probability of the most likely one (see `ConfidenceTracker`), which every engine can report.
    """

    name: ClassVar[str] = "deepconf"
    signals: ClassVar[bool] = True
    warmup: int | None = None  # samples that set the threshold; None means half of them, at most the paper's 16
    keep: float = 90.0  # per cent of the samples that would reach it; 90 is the paper's "high", 10 its "low"
    window: int = WINDOW
    consensus: float = 0.95  # share of the votes that ends the vote, after the warm-up and each later sample

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        warmup = min(WARMUP, (k + 1) // 2) if self.warmup is None else self.warmup
        if not 1 <= warmup < k:
            raise OptionError(f"warmup is {warmup} of {k} samples; accepted: at least 1 and fewer than all")
        if not 0 <= self.keep <= 100 or not 0 < self.consensus <= 1 or self.window < 1:
            raise OptionError(
                f"keep is {self.keep}, consensus {self.consensus} and window {self.window}; accepted: 0 to 100, "
                "above 0 to 1, and at least 1 token"
            )
        return _DeepConfVote(k, warmup, self)


class _DeepConfVote(VoteState):
    def __init__(self, k: int, warmup: int, rule: DeepConf) -> None:
        super().__init__(k)
        self.warmup, self.rule = warmup, rule
        self.threshold: float | None = None  # during the warm-up
        self._confidence: defaultdict[int, ConfidenceTracker] = defaultdict(partial(ConfidenceTracker, rule.window))

    def start_samples(self) -> list[Branch]:
        if not self.started:
            return self._start([ROOT] * self.warmup)
        if self.threshold is None:
            self.threshold = float(np.percentile([vote.weight for vote in self.votes], 100 - self.rule.keep))
            self._settle()
        return super().start_samples()

    def add_token(self, sample: int, confidence: float) -> None:
        tracker = self._confidence[sample]
        tracker.add(confidence)
        if self.threshold is None or sample in self.stopped or not tracker.full:
            return
        if (mean := tracker.window_mean) < self.threshold:
            self._stop(
                [sample], f"confidence {mean:.3f} over {self.rule.window} tokens, threshold {self.threshold:.3f}"
            )

    def weight(self, sample: int) -> float:
        return self._confidence[sample].lowest

    def tally(self) -> dict[str, float]:
        # Of the samples that reach the threshold, or of all if none of these has an answer.
        reaching = [vote for vote in self.votes if vote.weight >= (self.threshold or 0.0)]
        weights = tally(sorted(reaching, key=lambda vote: vote.sample))
        return weights if weights or self.remaining() else super().tally()

    def _settle(self) -> None:
        if self.threshold is None:
            return
        weights = self.tally()
        total = sum(weights.values())
        leader = next(iter(weights), "")
        if total and self.remaining() and weights[leader] >= self.rule.consensus * total:
            self._decide(f"{leader} has {weights[leader] / total:.0%} of the votes cast")
        else:
            super()._settle()


RULES: Mapping[str, AggregationRule] = {rule.name: rule for rule in (Majority(), ShortMofK(), DeepConf())}


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
