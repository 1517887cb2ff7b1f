"""Rewards for length: brevity within a group, keeping to the tier's budget, and brevity after a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...controller.budgets import TIERS
from ...errors import OptionError, unknown
from .base import THINK, Correctness, Reward, group_by_prompt, parse_number, require_column


class GroupBrevity(Reward):
    """From +weight/2 for the shortest right completion of a group down to -weight/2 for the longest (SER-RL).

    0 for wrong completions, if all right ones are equally long, or if too few of the group are right: a question that
    is not learned yet must not be learned short. The formula of the paper (arXiv 2506.15647) is unpublished; this one
    is ours.
    """

    name = "group_brevity"

    def __init__(
        self, correct: Correctness, weight: float = 0.2, min_accuracy: float = 0.5, *, thinking_only: bool = False
    ) -> None:
        """Prepare the reward.

        Args:
            correct: grades the completions.
            min_accuracy: the share of a group that has to be right.
            thinking_only: compare only completions that think, by the column `mode`; the others get 0.
        """
        if not 0 < weight < 1:
            raise OptionError(
                f"brevity weight is {weight}; accepted: above 0 and below 1, the reward for a right answer"
            )
        self.correct, self.weight, self.min_accuracy, self.thinking_only = correct, weight, min_accuracy, thinking_only

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        right = self.correct(prompts, completions, **columns)
        lengths = [len(ids) for ids in require_column(columns, "completion_ids", self.name)]
        rewards: list[float | None] = [0.0] * len(lengths)
        modes = require_column(columns, "mode", self.name) if self.thinking_only else [THINK] * len(lengths)
        for indices in group_by_prompt(prompts):
            group = [i for i in indices if modes[i] == THINK]
            good = [i for i in group if right[i]]
            if not good or len(good) < self.min_accuracy * len(group):
                continue
            shortest, longest = min(lengths[i] for i in good), max(lengths[i] for i in good)
            for i in good if shortest < longest else []:
                rewards[i] = self.weight * (0.5 - (lengths[i] - shortest) / (longest - shortest))
        return rewards


def excess_penalty(tokens: int, allowed: int) -> float:
    """0 within the allowed tokens, falling linearly to -1 at twice as many."""
    return -min(1.0, max(0, tokens - allowed) / max(allowed, 1))


class TierAdherence(Reward):
    """0 for thinking within the tier's budget, down to -1 at twice that; columns `tier` and `thinking_tokens`."""

    name = "tier_adherence"

    def __init__(self, budgets: Mapping[str, int] | None = None, marker_id: int | None = None) -> None:
        """Prepare the reward.

        Args:
            budgets: thinking tokens of each tier; by default those of the controller.
            marker_id: the token that closes the thinking. Without a column `thinking_tokens`, they are counted
                in `completion_ids` with it.
        """
        self.budgets = dict(budgets or {name: tier.thinking for name, tier in TIERS.items()})
        self.marker_id = marker_id
        for tier in self.budgets:
            if tier not in TIERS:
                raise unknown("tier", tier, TIERS)
        if marker_id is not None and (not isinstance(marker_id, int) or isinstance(marker_id, bool) or marker_id < 0):
            raise OptionError(f"marker_id is {marker_id!r}; accepted: the id of one token, 0 or more")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        tiers = require_column(columns, "tier", self.name)
        for tier in tiers:
            if not isinstance(tier, str) or tier not in self.budgets:
                raise unknown("tier", str(tier), self.budgets)
        counts = self._thinking_tokens(columns)
        return [excess_penalty(count, self.budgets[tier]) for tier, count in zip(tiers, counts, strict=True)]

    def _thinking_tokens(self, columns: Mapping[str, Any]) -> list[int]:
        if (counts := columns.get("thinking_tokens")) is not None:
            return [
                int(parse_number(count, f"row {i} of this batch's column 'thinking_tokens'"))
                for i, count in enumerate(counts)
            ]
        if self.marker_id is None:
            raise OptionError(
                f"the reward {self.name!r} needs the column 'thinking_tokens', as tersely's rollouts provide, or the "
                "id of the token that closes the thinking: "
                "TierAdherence(marker_id=tokenizer.convert_tokens_to_ids('</think>'))",
                code="missing_column",
            )
        return [
            count_thinking_tokens(ids, self.marker_id) for ids in require_column(columns, "completion_ids", self.name)
        ]


def count_thinking_tokens(ids: Sequence[int], marker: int) -> int:
    """Thinking tokens including the closing marker, as the rollouts count them; 0 if the marker comes first.

    All tokens count if the thinking is never closed. After a marker at the very start, a second one counts.
    """
    later = next((i for i, token in enumerate(ids) if i and token == marker), None)
    if later is not None:
        return later + 1
    return 0 if len(ids) and ids[0] == marker else len(ids)


class HintBudget(Reward):
    """0 if thinking ends within `tokens` after its first hint, down to -1 at twice that; None without a hint.

    Column `after_hint`: the model's own thinking tokens after the hint, None without one.
    """

    name = "hint_budget"

    def __init__(self, tokens: int = 128) -> None:
        if tokens < 1:
            raise OptionError(f"tokens after a hint is {tokens}; accepted: 1 or more")
        self.tokens = tokens

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        counts = require_column(columns, "after_hint", self.name)
        return [None if count is None else excess_penalty(count, self.tokens) for count in counts]
