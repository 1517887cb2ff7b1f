"""Features of a thought in addition to its hidden state: a few numbers, the same live and offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        """Add the next thought."""
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


def features(thoughts: Iterable[ThoughtReading]) -> NDArray[np.float32]:
    """The features at the end of the last of these thoughts; see `GrowingFeatures.values`."""
    growing = GrowingFeatures()
    for thought in thoughts:
        growing.add(thought)
    return growing.values()


def _count_agreeing(answers: Sequence[object]) -> int:
    """Count how many of the latest answers are equal."""
    count = 0
    for answer in reversed(answers):
        if answer != answers[-1]:
            break
        count += 1
    return count


TRIAL_FEATURES = (
    "logit of the trial's confidence",
    "the trial says what was stated",
    "latest trials that agree",
    "trials",
)


def trial_features(answers: Sequence[object], confidence: float, stated: object | None) -> NDArray[np.float32]:
    """Compute the features that trials add, [len(TRIAL_FEATURES)], of all answers so far and the latest confidence."""
    p = min(max(confidence, 1e-6), 1 - 1e-6)
    values = (np.log(p / (1 - p)), answers[-1] == stated, _count_agreeing(answers), len(answers))
    return np.array(values, dtype=np.float32)
