"""The pieces of AdaptThink's advantage (arXiv 2505.13417): correctness, plus delta where it did not think, minus what
the model before training gets right on the same question when it thinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import OptionError
from .base import NO_THINK, Reward, get_modes, needed, parse_number


class NoThinkBonus(Reward):
    """`delta` for a completion that answers without thinking, 0 for one that thinks.

    Not thinking wins on a question where thinking is right less than `delta` more often. marker: what ends the
    thinking; needed where no rollouts of ours tell the mode.
    """

    name = "no_think_bonus"

    def __init__(self, delta: float = 0.05, marker: str = "</think>") -> None:
        if not 0 <= delta <= 1:
            raise OptionError(f"delta is {delta}; accepted: a share from 0 to 1")
        self.delta, self.marker = delta, marker

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        return [self.delta * (mode == NO_THINK) for mode in get_modes(completions, columns, self.marker)]


class ReferenceBaseline(Reward):
    """Minus the share that the reference model gets right on the question by thinking; column `reference`."""

    name = "reference_baseline"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        shares = enumerate(needed(columns, "reference", self.name))
        return [-parse_number(share, f"row {place} of this batch's column 'reference'") for place, share in shares]
