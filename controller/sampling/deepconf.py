"""Stopping samples that are less sure of themselves than others were (DeepConf, arXiv 2508.15260)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ...errors import OptionError
from .confidence import ConfidenceTracker
from .vote import ROOT, Branch, VoteState, tally

WARMUP = 16
WINDOW = 2048


@dataclass(frozen=True, slots=True)
class DeepConf:
    """DeepConf online: some samples run to their end and set a bar, later ones are stopped where they fall below it.

    A sample is worth its least group confidence, the lowest mean over `window` tokens in a row. The bar is the
    (100 - keep)th percentile of what the warm-up samples are worth: keep=90 is the paper's "high", 10 its "low". Those
    that reach the bar vote by their worth. consensus: the share of the votes that settles the matter, after the
    warm-up and after each sample that ends later.

    warmup: None takes half of the samples and at most the paper's 16. The paper measures the confidence of a token by
    the mean log-probability of the 20 likeliest, negated, which has no upper end; here it is the probability of the
    likeliest (see `ConfidenceTracker`), between 0 and 1, which tells a sure token from a very sure one less, and for
    which no
    engine has to report 20 numbers a token. A sample shorter than the window is not stopped, but judged as a whole.
    """

    name: ClassVar[str] = "deepconf"
    signals: ClassVar[bool] = True
    warmup: int | None = None
    keep: float = 90.0
    window: int = WINDOW
    consensus: float = 0.95

    def poll(self, k: int) -> VoteState:
        """See `Rule.poll`."""
        warmup = min(WARMUP, (k + 1) // 2) if self.warmup is None else self.warmup
        if not 1 <= warmup < k:
            raise OptionError(f"warmup is {warmup} of {k} samples; accepted: at least 1 and fewer than all")
        if not 0 <= self.keep <= 100 or not 0 < self.consensus <= 1 or self.window < 1:
            raise OptionError(
                f"keep is {self.keep}, consensus {self.consensus} and window {self.window}; accepted: 0 to 100, "
                "above 0 to 1, and at least 1 token"
            )
        return DeepConfVote(k, warmup, self)


class DeepConfVote(VoteState):
    """The poll of one prompt; bar: None during the warm-up."""

    def __init__(self, k: int, warmup: int, rule: DeepConf) -> None:
        super().__init__(k)
        self.warmup, self.rule = warmup, rule
        self.bar: float | None = None
        self._meters: defaultdict[int, ConfidenceTracker] = defaultdict(partial(ConfidenceTracker, rule.window))

    def draw(self) -> list[Branch]:
        """See `VoteState.draw`."""
        if not self.begun:
            return self._begin([ROOT] * self.warmup)
        if self.bar is None:
            self.bar = percentile([ballot.weight for ballot in self.ballots], 100 - self.rule.keep)
            self._settle()
        return super().draw()

    def read(self, sample: int, confidence: float) -> None:
        """See `VoteState.read`."""
        meter = self._meters[sample]
        meter.add(confidence)
        if self.bar is not None and meter.full and meter.group < self.bar and sample not in self.stopped:
            self._stop([sample], f"confidence {meter.group:.3f} over {self.rule.window} tokens, bar {self.bar:.3f}")

    def weight(self, sample: int) -> float:
        """See `VoteState.weight`."""
        return self._meters[sample].least

    def votes(self) -> dict[str, float]:
        """See `VoteState.votes`; of those that reach the bar, or of all where none of these gave an answer at the
        end.
        """
        votes = tally(sorted((b for b in self.ballots if b.weight >= (self.bar or 0.0)), key=lambda b: b.sample))
        return votes if votes or self.left() else super().votes()

    def _settle(self) -> None:
        if self.bar is None:
            return
        votes = self.votes()
        total = sum(votes.values())
        leader = next(iter(votes), "")
        if total and self.left() and votes[leader] >= self.rule.consensus * total:
            self._decide(f"{leader} has {votes[leader] / total:.0%} of the votes cast")
        else:
            super()._settle()


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many per cent lie, interpolated between neighbours; values: at least one."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
