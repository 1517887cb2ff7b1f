"""When to stop thinking: the features of thoughts and of stated values, and the rules that score them.

Evidence is taken in order of its cost, in the same way live and on recorded data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .network import Network

FEATURES = (
    "thoughts",
    "log tokens",
    "log tokens of the thought",
    "reflective",
    "mean entropy of the thought",
    "largest entropy of the thought",
    "last entropy",
    "mean entropy so far",
    "smallest top probability of the thought",
    "mean margin of the thought",
    "states an answer",
    "answers stated",
    "latest answers that agree",
    "changes of answer",
    "least of the largest entropies behind the answer",
)


@dataclass(frozen=True, slots=True)
class ThoughtReading:
    """One thought as the probes see it."""

    tokens: int  # sampled tokens
    reflective: bool
    answer: str | None  # the answer that it states, normalised so that equal answers are equal strings
    entropy_mean: float  # in nats over the sampled tokens, as all entropies
    entropy_max: float
    entropy_last: float
    top_min: float
    margin_mean: float


class GrowingFeatures:
    """The features of growing thinking; the cost of a thought does not depend on how many there are."""

    def __init__(self) -> None:
        self._thoughts = self._tokens = self._answers = self._agreeing = self._changes = 0
        self._entropies = 0.0  # summed over all tokens
        self._largest = -np.inf
        self._last: ThoughtReading | None = None
        self._answer: str | None = None  # the latest
        self._least: dict[str, float] = {}  # of the largest entropies of the thoughts that state an answer

    def add(self, thought: ThoughtReading) -> None:
        self._thoughts += 1
        self._tokens += thought.tokens
        self._entropies += thought.entropy_mean * thought.tokens
        self._largest = max(self._largest, thought.entropy_max)
        self._last = thought
        if (answer := thought.answer) is not None:
            self._changes += self._answers > 0 and answer != self._answer
            self._agreeing = self._agreeing + 1 if answer == self._answer else 1
            self._answers, self._answer = self._answers + 1, answer
            self._least[answer] = min(self._least.get(answer, np.inf), thought.entropy_max)

    def values(self) -> NDArray[np.float32]:
        """The features at the end of the last thought: [len(FEATURES)], in the order of `FEATURES`."""
        last = self._last
        assert last is not None
        values = (
            self._thoughts,
            np.log1p(self._tokens),
            np.log1p(last.tokens),
            last.reflective,
            last.entropy_mean,
            last.entropy_max,
            last.entropy_last,
            self._entropies / max(self._tokens, 1),
            last.top_min,
            last.margin_mean,
            last.answer is not None,
            self._answers,
            self._agreeing,
            self._changes,
            # Without an answer: the entropy of the least certain thought.
            self._largest if self._answer is None else self._least[self._answer],
        )
        return np.array(values, dtype=np.float32)


TRIAL_FEATURES = (
    "logit of the trial's confidence",
    "the trial says what was stated",
    "latest trials that agree",
    "trials",
)


def trial_features(answers: Sequence[object], confidence: float, stated: object | None) -> NDArray[np.float32]:
    """Compute the features that trials add, [len(TRIAL_FEATURES)], of all answers so far and the latest confidence."""
    p = min(max(confidence, 1e-6), 1 - 1e-6)
    agreeing = len(list(takewhile(lambda answer: answer == answers[-1], reversed(answers))))
    values = (np.log(p / (1 - p)), answers[-1] == stated, agreeing, len(answers))
    return np.array(values, dtype=np.float32)


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


TEXT_FEATURES = (
    "log derivations",
    "log confirmations",
    "log statements that call it the answer",
    "log statements in a row",
    "log statements about the goal in a row",
    "log reconsiderations",
    "log tokens",
    "contested",
    "finality",
)
"""What speaks for a value that the thinking has stated."""
RULE = 0.5


def combine(probability: ArrayLike, supported: ArrayLike) -> NDArray[np.float64]:
    """Scores by which all values that the rule of `convergence` supports come before all others: from `RULE` on.

    So one threshold is stricter than the rule, the rule itself, or more lenient.
    """
    p = np.asarray(probability, np.float64)
    return np.where(supported, (1 + p) / 2, 0.499 * p)
