"""DeepConf (arXiv 2508.15260): votes that weigh and filter samples by the confidence of their tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, check_known
from ..types import Capability
from .rules import ROOT, Branch, VoteState, tally

WARMUP = 16
WINDOW = 2048
BOTTOM = 0.1
_DECIMALS = 3
Measure = Literal["mean", "tail", "bottom", "lowest"]
_NEEDS = frozenset({Capability.TOP_LOGPROBS})


def window_means(confidences: Sequence[float], window: int) -> NDArray[np.float64]:
    """Mean confidence of each group of `window` tokens in a row; of a shorter sample, the mean of all; 0 of none.

    Rounded to three decimals, as by the authors: samples that begin alike share groups, whose means have to be equal.
    """
    values = np.asarray(confidences, dtype=np.float64)
    if len(values) < window:
        return values.mean(keepdims=True) if len(values) else np.zeros(1)
    sums = np.concatenate(([0.0], values.cumsum()))
    means: NDArray[np.float64] = np.round((sums[window:] - sums[:-window]) / window, _DECIMALS)
    return means


def measure_confidence(confidences: Sequence[float], measure: Measure, window: int = WINDOW) -> float:
    """Confidence of a sample from that of its tokens (see `Signals.confidence`); 0 without any.

    "mean" is over all tokens, "tail" over the last `window`; "lowest" is the least confident group, and "bottom" the
    mean of the tenth of the groups that are least confident.
    """
    if measure in ("mean", "tail"):
        tokens = confidences[-window:] if measure == "tail" else confidences
        return float(np.mean(tokens)) if tokens else 0.0
    means = np.sort(window_means(confidences, window))
    count = 1 if measure == "lowest" else max(1, int(len(means) * BOTTOM))
    return float(means[:count].mean())


def find_threshold(confidences: Sequence[float], keep: float) -> float:
    """The confidence that the best `keep` per cent of samples reach: the (100 - keep)th percentile."""
    return float(np.percentile(confidences, 100 - keep))


@dataclass(frozen=True, slots=True)
class DeepConfOffline:
    """DeepConf offline (arXiv 2508.15260): of the samples with an answer, the most confident vote, by their confidence.

    All k samples run to their end. With `keep=100` nothing is filtered, which is the confidence-weighted majority."""

    name: ClassVar[str] = "deepconf-offline"
    requires: ClassVar[frozenset[Capability]] = _NEEDS
    measure: Measure = "tail"  # see `measure_confidence`; the authors filter by "tail" and by "bottom"
    keep: float = 10.0  # per cent of the samples that vote; the paper has 10 and 90
    window: int = WINDOW

    def start_vote(self, k: int) -> VoteState:
        check_known("measure", self.measure, get_args(Measure))
        _check(self.keep, self.window)
        return _ConfidenceVote(k, self.measure, self.keep, self.window)


class _ConfidenceVote(VoteState):
    """The votes that reach the percentile, weighted; never settled early, as weights have no upper bound."""

    def __init__(self, k: int, measure: Measure, keep: float, window: int) -> None:
        super().__init__(k, early=False)
        self.measure, self.keep, self.window = measure, keep, window
        self.confidences: defaultdict[int, list[float]] = defaultdict(list)

    def add_token(self, sample: int, confidence: float) -> None:
        self.confidences[sample].append(confidence)

    def weight(self, sample: int) -> float:
        return measure_confidence(self.confidences[sample], self.measure, self.window)

    def tally(self) -> dict[str, float]:
        """See `VoteState.tally`, of the votes that are confident enough."""
        votes = sorted((vote for vote in self.votes if vote.answer), key=lambda vote: vote.sample)
        if not votes:
            return {}
        threshold = find_threshold([vote.weight for vote in votes], self.keep)
        return tally(vote for vote in votes if vote.weight >= threshold)


@dataclass(frozen=True, slots=True)
class DeepConf:
    """DeepConf online (arXiv 2508.15260): samples whose confidence falls below that of the warm-up are stopped.

    The warm-up's lowest group confidences give the threshold, their (100 - keep)th percentile. A later sample is
    stopped as soon as a group of `window` tokens is below it. The votes of those that reach it, the warm-up's among
    them, weigh as much as their least confident group, and the vote ends once one answer has the share `consensus`.

    Different: where no sample that reaches the threshold has an answer, the others vote; and a vote has k samples, the
    paper's up to 512.
    """

    name: ClassVar[str] = "deepconf"
    requires: ClassVar[frozenset[Capability]] = _NEEDS
    warmup: int | None = None  # samples that set the threshold; None means half of them, at most the paper's 16
    keep: float = 90.0  # per cent of the samples that would reach it; 90 is the paper's "high", 10 its "low"
    window: int = WINDOW
    consensus: float = 0.95  # share of the votes that ends the vote, after the warm-up and each later sample

    def start_vote(self, k: int) -> VoteState:
        warmup = min(WARMUP, (k + 1) // 2) if self.warmup is None else self.warmup
        if not 1 <= warmup < k:
            raise OptionError(f"warmup is {warmup} of {k} samples; accepted: at least 1 and fewer than all")
        if not 0 < self.consensus <= 1:
            raise OptionError(f"consensus is {self.consensus}; accepted: above 0, up to 1")
        _check(self.keep, self.window)
        return _DeepConfVote(k, warmup, self)


class _DeepConfVote(_ConfidenceVote):
    def __init__(self, k: int, warmup: int, rule: DeepConf) -> None:
        super().__init__(k, "lowest", rule.keep, rule.window)
        self.warmup, self.consensus = warmup, rule.consensus
        self.threshold: float | None = None  # during the warm-up
        self._sums: defaultdict[int, float] = defaultdict(float)  # of the latest window

    def start_samples(self) -> list[Branch]:
        if not self.started:
            return self._start([ROOT] * self.warmup)
        if self.threshold is None:
            self.threshold = find_threshold([vote.weight for vote in self.votes], self.keep)
            self._settle()
        return super().start_samples()

    def add_token(self, sample: int, confidence: float) -> None:
        super().add_token(sample, confidence)
        known = self.confidences[sample]
        self._sums[sample] += confidence - (known[-self.window - 1] if len(known) > self.window else 0.0)
        if self.threshold is None or sample in self.stopped or len(known) < self.window:
            return
        if (mean := round(self._sums[sample] / self.window, _DECIMALS)) < self.threshold:
            self._stop([sample], f"confidence {mean:.3f} over {self.window} tokens, threshold {self.threshold:.3f}")

    def tally(self) -> dict[str, float]:
        reaching = [vote for vote in self.votes if vote.weight >= (self.threshold or 0.0)]
        weights = tally(sorted(reaching, key=lambda vote: vote.sample))
        return weights if weights or self.remaining() else VoteState.tally(self)

    def _settle(self) -> None:
        weights = self.tally() if self.threshold is not None else {}
        total, leader = sum(weights.values()), next(iter(weights), "")
        if total and self.remaining() and weights[leader] >= self.consensus * total:
            self._decide(f"{leader} has {weights[leader] / total:.0%} of the votes cast")


def _check(keep: float, window: int) -> None:
    if not 0 <= keep <= 100 or window < 1:
        raise OptionError(f"keep is {keep} and window {window}; accepted: 0 to 100, and at least 1 token")
