"""Keeping to what was asked for: the tier's budget of thinking, and brevity after a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...controller.budgets import TIERS
from ...errors import OptionError, unknown
from .base import Reward, needed, parse_number


def excess(tokens: int, allowed: int) -> float:
    """0 within what is allowed, falling evenly to -1 at twice as much."""
    return -min(1.0, max(0, tokens - allowed) / max(allowed, 1))


def thinking_length(ids: Sequence[int], marker: int) -> int:
    """Tokens of the thinking, the closing marker included, as the rollouts count: 0 where that comes first.

    All count where the thinking is never closed, and up to a second marker where the first one ended nothing.
    """
    later = next((place for place, token in enumerate(ids) if place and token == marker), None)
    if later is not None:
        return later + 1
    return 0 if len(ids) and ids[0] == marker else len(ids)


class TierAdherence(Reward):
    """0 for thinking within the tier's budget, down to -1 at twice that; columns `tier` and `thinking_tokens`.

    budgets: thinking tokens of each tier, by default those of the controller. marker_id: the token that ends the
    thinking, by which thinking is counted in `completion_ids` where there is no column `thinking_tokens`.
    """

    name = "tier_adherence"

    def __init__(self, budgets: Mapping[str, int] | None = None, marker_id: int | None = None) -> None:
        self.budgets = dict(budgets or {name: tier.thinking for name, tier in TIERS.items()})
        self.marker_id = marker_id
        for tier in self.budgets:
            if tier not in TIERS:
                raise unknown("tier", tier, TIERS)
        if marker_id is not None and (not isinstance(marker_id, int) or isinstance(marker_id, bool) or marker_id < 0):
            raise OptionError(f"marker_id is {marker_id!r}; accepted: the id of one token, 0 or more")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        allowed = [self._budget(tier) for tier in needed(columns, "tier", self.name)]
        return [excess(count, budget) for budget, count in zip(allowed, self._tokens(columns), strict=True)]

    def _budget(self, tier: Any) -> int:
        if not isinstance(tier, str) or tier not in self.budgets:
            raise unknown("tier", str(tier), self.budgets)
        return self.budgets[tier]

    def _tokens(self, columns: Mapping[str, Any]) -> list[int]:
        """Thinking tokens of each completion: those of the column, otherwise counted; raises OptionError."""
        if (given := columns.get("thinking_tokens")) is not None:
            where = "row {} of this batch's column 'thinking_tokens'"
            return [int(parse_number(count, where.format(place))) for place, count in enumerate(given)]
        if self.marker_id is None:
            raise OptionError(
                f"the reward {self.name!r} needs a column 'thinking_tokens', as tersely's rollouts give, or the id of "
                "the token that ends the thinking, to count by: "
                "TierAdherence(marker_id=tokenizer.convert_tokens_to_ids('</think>'))"
            )
        return [thinking_length(ids, self.marker_id) for ids in needed(columns, "completion_ids", self.name)]


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
