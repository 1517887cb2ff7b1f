"""When to stop thinking: evidence in order of its cost, and the same walk over it live and on recorded data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .features import trial_features
from .network import Network
from .readiness import HOPEFUL, HOPELESS

OVERHEAD = 0.1


@dataclass(frozen=True, slots=True)
class Evidence:
    """One network of a stop rule with its classes; reads a row of numbers, says whether to stop and whether to hope."""

    network: Network
    classes: tuple[str, ...]

    def scores(self, rows: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each row [n, inputs]: the chance that stopping does no harm, and that thinking on will not help: [n]."""
        chances = self.network.proba(rows).astype(np.float64)
        none = np.zeros(len(chances))
        hopeful = chances[:, self.classes.index(HOPEFUL)] if HOPEFUL in self.classes else none
        hopeless = chances[:, self.classes.index(HOPELESS)] if HOPELESS in self.classes else none
        return 1.0 - hopeful, hopeless


@dataclass(frozen=True, slots=True)
class StopRule:
    """Scores the end of a thought from what is free; from a trial answer where that lies in low <= score < high.

    free reads features and hidden state; paid, None for never, reads the features of trials beside them. overhead:
    trials may cost at most this share of the tokens thought so far.
    """

    free: Evidence
    paid: Evidence | None = None
    low: float = 1.0
    high: float = 1.0
    overhead: float = OVERHEAD


class Walk:
    """A stop rule on its way through one thinking."""

    def __init__(self, rule: StopRule) -> None:
        self.rule = rule
        self.said: list[object] = []
        self.tokens = 0
        """What trials have cost so far."""
        self.hopeless = 0.0
        self.row: NDArray[np.float32] = np.zeros(0, np.float32)
        """Features and state of the latest boundary."""

    def free(self, features: NDArray[np.float32], state: NDArray[np.float32]) -> float:
        """The score of a boundary from what is known anyway; `hopeless` then is the chance that all is lost."""
        self.row = np.concatenate([features, state])
        return self._score(self.rule.free, self.row)

    def wants_trial(self, score: float, end: int) -> bool:
        """Whether a trial is worth its cost after `end` thinking tokens; judged before its cost is known."""
        rule = self.rule
        return rule.paid is not None and rule.low <= score < rule.high and self.tokens <= rule.overhead * end

    def paid(self, said: object, confidence: float, tokens: int, stated: object | None) -> float:
        """The score of the same boundary with a trial: what it said, how sure, its cost, and the answer stated last."""
        assert self.rule.paid is not None
        self.said.append(said)
        self.tokens += tokens
        return self._score(self.rule.paid, np.concatenate([self.row, trial_features(self.said, confidence, stated)]))

    def _score(self, evidence: Evidence, row: NDArray[np.float32]) -> float:
        score, hopeless = evidence.scores(row[None])
        self.hopeless = float(hopeless[0])
        return float(score[0])


@dataclass(frozen=True, slots=True)
class Walked:
    """What a rule made of recorded boundaries, each [boundaries].

    score: after all evidence; hopeless: its chance; paid: what trials had cost by then; asked: whether there was one.
    """

    score: NDArray[np.float64]
    hopeless: NDArray[np.float64]
    paid: NDArray[np.int64]
    asked: NDArray[np.bool_]


def walk_all(
    rule: StopRule,
    rows: NDArray[np.float32],
    end: NDArray[Any],
    said: NDArray[Any],
    confidence: NDArray[Any],
    trial: NDArray[Any],
    stated: NDArray[Any],
    rollout: NDArray[Any],
) -> Walked:
    """Walk a rule over recorded boundaries, [boundaries] in order, of which `rows` are features and states.

    Free scores are found for all at once, trials one by one: what one adds depends on those before it.
    """
    score, hopeless = rule.free.scores(rows) if len(rows) else (np.zeros(0), np.zeros(0))
    paid, asked = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    walk = Walk(rule)
    for place in range(len(rows)):
        if place and rollout[place] != rollout[place - 1]:
            walk = Walk(rule)
        if trial[place] and walk.wants_trial(float(score[place]), int(end[place])):
            walk.row = rows[place]
            asked[place] = True
            told = int(stated[place])
            score[place] = walk.paid(
                int(said[place]), float(confidence[place]), int(trial[place]), told if told >= 0 else None
            )
            hopeless[place] = walk.hopeless
        paid[place] = walk.tokens
    return Walked(score, hopeless, paid, asked)
