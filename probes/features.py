"""Features of a thought in addition to its hidden state: a few numbers, the same live and offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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


def features(thoughts: Sequence[ThoughtReading]) -> NDArray[np.float32]:
    """Compute the features at the end of the last of these thoughts: [len(FEATURES)], in the order of `FEATURES`."""
    last = thoughts[-1]
    tokens = sum(t.tokens for t in thoughts)
    answers = [t.answer for t in thoughts if t.answer is not None]
    changes = sum(a != b for a, b in pairwise(answers))
    behind = [t.entropy_max for t in thoughts if answers and t.answer == answers[-1]]
    values = (
        len(thoughts),
        np.log1p(tokens),
        np.log1p(last.tokens),
        last.reflective,
        last.entropy_mean,
        last.entropy_max,
        last.entropy_last,
        sum(t.entropy_mean * t.tokens for t in thoughts) / max(tokens, 1),
        last.top_min,
        last.margin_mean,
        last.answer is not None,
        len(answers),
        _count_agreeing(answers),
        changes,
        # Without an answer: the entropy of the least certain thought.
        min(behind, default=max(t.entropy_max for t in thoughts)),
    )
    return np.array(values, dtype=np.float32)


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
