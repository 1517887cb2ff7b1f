"""When to stop thinking: evidence in order of its cost, applied in the same way live and to recorded data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .features import trial_features
from .network import Network

READY, HOPEFUL, HOPELESS = "ready", "hopeful", "hopeless"
"""Classes of a thought boundary: an answer now is right; it is wrong and further thinking repairs it; it is wrong and
so will be the final answer."""
OVERHEAD = 0.1


@dataclass(frozen=True, slots=True)
class Evidence:
    """One network of a stop rule with the classes it predicts."""

    network: Network
    classes: tuple[str, ...]

    def scores(self, rows: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For each row [n, inputs]: probability that stopping does no harm, and that further thinking is futile."""
        probabilities = self.network.proba(rows).astype(np.float64)
        zeros = np.zeros(len(probabilities))
        hopeful = probabilities[:, self.classes.index(HOPEFUL)] if HOPEFUL in self.classes else zeros
        hopeless = probabilities[:, self.classes.index(HOPELESS)] if HOPELESS in self.classes else zeros
        return 1.0 - hopeful, hopeless


@dataclass(frozen=True, slots=True)
class StopRule:
    """Scores the end of a thought: from free evidence, and with a trial answer where that score is undecided."""

    free: Evidence  # reads features and hidden state
    paid: Evidence | None = None  # also reads the features of trial answers; None if the rule never asks for one
    low: float = 1.0  # a trial is wanted if low <= free score < high
    high: float = 1.0
    overhead: float = OVERHEAD  # share of the thinking tokens so far that trials may cost


class RuleState:
    """A stop rule in use on one thinking."""

    def __init__(self, rule: StopRule) -> None:
        self.rule = rule
        self.row: NDArray[np.float32] = np.zeros(0, np.float32)  # features and hidden state of the latest boundary
        self.hopeless = 0.0  # probability, by the latest score, that neither stopping nor thinking helps
        self.answers: list[object] = []  # answers of the trials so far
        self.trial_tokens = 0  # tokens that trials have cost so far

    def score_free(self, features: NDArray[np.float32], state: NDArray[np.float32]) -> float:
        """Score a boundary from its features and hidden state."""
        self.row = np.concatenate([features, state])
        return self._score(self.rule.free, self.row)

    def wants_trial(self, score: float, end: int) -> bool:
        """Whether a trial is worth its cost after `end` thinking tokens, decided before its cost is known."""
        rule = self.rule
        return rule.paid is not None and rule.low <= score < rule.high and self.trial_tokens <= rule.overhead * end

    def score_with_trial(self, answer: object, confidence: float, tokens: int, stated: object | None) -> float:
        """Score the same boundary with a trial answer, its cost, and the latest answer that the thinking states."""
        assert self.rule.paid is not None
        self.answers.append(answer)
        self.trial_tokens += tokens
        features = trial_features(self.answers, confidence, stated)
        return self._score(self.rule.paid, np.concatenate([self.row, features]))

    def _score(self, evidence: Evidence, row: NDArray[np.float32]) -> float:
        score, hopeless = evidence.scores(row[None])
        self.hopeless = float(hopeless[0])
        return float(score[0])
