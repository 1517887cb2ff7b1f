"""Adaptive policy optimisation's discount of costly modes on easy questions (APO of A2FM, arXiv 2510.12838)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import OptionError
from .base import NO_THINK, Reward, get_modes, groups, needed
from .correctness import Correctness


class AdaptiveDiscount(Reward):
    """Correctness, of which thinking keeps `1 - p ** alpha` on an easy question; 0 where no answer was given.

    A question is easy if p, the share that forced rollouts without thinking get right, is above `easy` (the paper gives
    no value; sources differ on which rollouts p counts). Column `begun` tells forced rollouts from free ones.
    """

    name = "adaptive"

    def __init__(self, correct: Correctness, alpha: float = 2.0, easy: float = 0.5, marker: str = "</think>") -> None:
        if alpha <= 0 or not 0 <= easy <= 1:
            raise OptionError(f"alpha is {alpha} and easy is {easy}; accepted: above 0, and a share from 0 to 1")
        self.correct, self.alpha, self.easy, self.marker = correct, alpha, easy, marker

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        right = self.correct(prompts, completions, **columns)
        modes = get_modes(completions, columns, self.marker)
        begun = needed(columns, "begun", self.name)
        rewards: list[float | None] = []
        for group in groups(prompts):
            instant = [(right[i] or 0.0) * (modes[i] == NO_THINK) for i in group if begun[i] == NO_THINK]
            p = sum(instant) / len(instant) if instant else 0.0
            kept = 1 - p**self.alpha if p > self.easy else 1.0
            rewards += [(right[i] or 0.0) * (1.0 if modes[i] == NO_THINK else kept) for i in group]
        return rewards
