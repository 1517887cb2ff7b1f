"""Keeping to what was asked for: the tier's budget of thinking, and brevity after a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...controller.budgets import TIERS
from ...errors import OptionError, unknown
from .base import Reward, needed


def excess(tokens: int, allowed: int) -> float:
    """0 within what is allowed, falling evenly to -1 at twice as much."""
    return -min(1.0, max(0, tokens - allowed) / max(allowed, 1))


class TierAdherence(Reward):
    """0 for thinking within the tier's budget, down to -1 at twice that; columns `tier` and `thinking_tokens`.

    budgets: thinking tokens of each tier, by default those of the controller.
    """

    name = "tier_adherence"

    def __init__(self, budgets: Mapping[str, int] | None = None) -> None:
        self.budgets = dict(budgets or {name: tier.thinking for name, tier in TIERS.items()})
        for tier in self.budgets:
            if tier not in TIERS:
                raise unknown("tier", tier, TIERS)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        tiers, tokens = (needed(columns, name, self.name) for name in ("tier", "thinking_tokens"))
        return [excess(count, self.budgets[tier]) for tier, count in zip(tiers, tokens, strict=True)]


class HintBudget(Reward):
    """0 where thinking ends within `tokens` after its first hint, down to -1 at twice that; None without a hint.

    Column `after_hint`: the model's own thinking tokens after the hint, None where there was none.
    """

    name = "hint_budget"

    def __init__(self, tokens: int = 128) -> None:
        if tokens < 1:
            raise OptionError(f"tokens after a hint is {tokens}; accepted: 1 or more")
        self.tokens = tokens

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        after = needed(columns, "after_hint", self.name)
        return [None if count is None else excess(count, self.tokens) for count in after]
