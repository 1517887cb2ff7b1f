"""Scores in one number: E3 of accuracy and tokens, and WebLeaper's two of a search for entities."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ...errors import OptionError

KEEP_ISR, KEEP_ISE = 0.3, 0.1


def e3(accuracy: float, tokens: float) -> float:
    """E^3 = A * (A / T), A in percent and T the mean decoded tokens (Plan-and-Budget, arXiv 2505.16122).

    accuracy is a share of 1, as everywhere here; tokens should hold those of planners and verifiers too. Report both
    beside the score: it depends on the scale of A, and doubling A counts for more than halving T.
    """
    if not 0 <= accuracy <= 1:
        raise OptionError(f"accuracy is {accuracy}; accepted: a share from 0 to 1")
    if tokens < 0:
        raise OptionError(f"tokens are {tokens}; accepted: 0 or more")
    if not tokens:
        return math.inf if accuracy else 0.0
    return (100 * accuracy) ** 2 / tokens


@dataclass(frozen=True, slots=True)
class SearchScore:
    """One search: the entities it should find, those it saw (of page visits only), and its steps."""

    required: frozenset[Hashable]
    obtained: frozenset[Hashable]
    steps: int

    def __post_init__(self) -> None:
        if not self.required:
            raise OptionError("no entity is required; accepted: at least one")
        if self.steps < 1:
            raise OptionError(f"steps are {self.steps}; accepted: 1 or more")

    @property
    def isr(self) -> float:
        """Information-seeking rate: the share of the required entities that was found (WebLeaper, arXiv 2510.24697)."""
        return len(self.required & self.obtained) / len(self.required)

    @property
    def ise(self) -> float:
        """Information-seeking efficiency: required entities found per step.

        Sources differ on whether all required entities count or those found; only the latter does not reward giving
        up early, and on a complete search both agree. Its variance falls as 1/n: use tasks with many entities.
        """
        return len(self.required & self.obtained) / self.steps

    @property
    def worth_keeping(self) -> bool:
        """Whether the paper would train on it."""
        return self.isr > KEEP_ISR and self.ise > KEEP_ISE


def duplicate_rate(actions: Sequence[Hashable]) -> float:
    """Share of actions that repeat an earlier one: what is left to say where no entities are labelled."""
    return 1 - len(set(actions)) / len(actions) if actions else 0.0
