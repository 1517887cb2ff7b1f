"""How sure of itself a sample is, as its tokens come."""

from __future__ import annotations

import math
from collections import deque


class ConfidenceTracker:
    """Mean confidence over all tokens, and over a sliding window of them.

    The confidence of a token is the probability of the likeliest one, `Signals.top`, from 0 to 1; forced tokens and
    those of trial answers have none.
    """

    def __init__(self, window: int | None = None) -> None:
        self._recent: deque[float] | None = None if window is None else deque(maxlen=window)
        self._sum = self._total = 0.0
        self._tokens = 0
        self._least = math.inf

    def add(self, confidence: float) -> None:
        """Take in one token."""
        self._total += confidence
        self._tokens += 1
        recent = self._recent
        if recent is None:
            return
        self._sum += confidence - (recent[0] if self.full else 0.0)
        recent.append(confidence)
        if self.full:
            self._least = min(self._least, self.group)

    @property
    def full(self) -> bool:
        """Whether there were as many tokens as the window holds."""
        return self._recent is not None and len(self._recent) == self._recent.maxlen

    @property
    def group(self) -> float:
        """Mean over the window as it stands; it holds at least one token."""
        return self._sum / len(self._recent or ())

    @property
    def mean(self) -> float:
        """Mean over all tokens; 0 if there were none."""
        return self._total / self._tokens if self._tokens else 0.0

    @property
    def least(self) -> float:
        """Lowest mean of a full window; that of all tokens while none was full."""
        return self._least if self._least < math.inf else self.mean
