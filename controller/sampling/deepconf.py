"""Stopping samples that are less confident than others were (DeepConf, arXiv 2508.15260)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from ...errors import OptionError
from .vote import ROOT, Branch, ConfidenceTracker, VoteState, tally

WARMUP = 16
WINDOW = 2048


@dataclass(frozen=True, slots=True)
class DeepConf:
    """DeepConf online: some samples run to their end and set a threshold; later ones are stopped if they fall below it.

    The score of a sample is its lowest mean confidence over `window` tokens in a row; a sample shorter than that is
    never stopped and scored as a whole. The threshold is the (100 - keep)th percentile of the scores of the warm-up.
    Samples that reach it vote with their scores as weights.

    The paper measures the confidence of a token by the negative mean log-probability of the 20 most likely ones, which
    has no upper end. Here it is the probability of the most likely one (see `ConfidenceTracker`): that distinguishes
    confident tokens less well from very confident ones, but no engine has to report 20 numbers per token.

    Attributes:
        warmup: how many samples set the threshold; None means half of them, at most the paper's 16.
        keep: per cent of the samples that would reach the threshold; 90 is the paper's "high", 10 its "low".
        consensus: share of the votes that ends the vote, after the warm-up and after each later sample.
    """

    name: ClassVar[str] = "deepconf"
    signals: ClassVar[bool] = True
    warmup: int | None = None
    keep: float = 90.0
    window: int = WINDOW
    consensus: float = 0.95

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
        return DeepConfVote(k, warmup, self)


class DeepConfVote(VoteState):
    """The vote on one prompt.

    Attributes:
        threshold: None during the warm-up.
    """

    def __init__(self, k: int, warmup: int, rule: DeepConf) -> None:
        super().__init__(k)
        self.warmup, self.rule = warmup, rule
        self.threshold: float | None = None
        self._confidence: defaultdict[int, ConfidenceTracker] = defaultdict(partial(ConfidenceTracker, rule.window))

    def start_samples(self) -> list[Branch]:
        """See `VoteState.start_samples`."""
        if not self.started:
            return self._start([ROOT] * self.warmup)
        if self.threshold is None:
            self.threshold = float(np.percentile([vote.weight for vote in self.votes], 100 - self.rule.keep))
            self._settle()
        return super().start_samples()

    def add_token(self, sample: int, confidence: float) -> None:
        """See `VoteState.add_token`."""
        tracker = self._confidence[sample]
        tracker.add(confidence)
        if self.threshold is None or sample in self.stopped or not tracker.full:
            return
        if (mean := tracker.window_mean) < self.threshold:
            self._stop(
                [sample], f"confidence {mean:.3f} over {self.rule.window} tokens, threshold {self.threshold:.3f}"
            )

    def weight(self, sample: int) -> float:
        """See `VoteState.weight`."""
        return self._confidence[sample].lowest

    def tally(self) -> dict[str, float]:
        """See `VoteState.tally`; of the samples that reach the threshold, or of all if none of these has an answer."""
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
