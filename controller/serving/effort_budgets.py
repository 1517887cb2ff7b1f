"""What the names of efforts mean in tokens: upper caps of the thinking, LiteLLM's unless a server says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import OptionError, unknown
from ..budgets import ANSWER_RESERVE, TIERS, Budget, canonical_effort

CAPS: Mapping[str, int] = {
    "none": 0,
    "minimal": 128,
    "low": 1024,
    "medium": 2048,
    "high": 4096,
    "xhigh": 8192,
    "max": 16384,
}
OURS = {"easy": "low", "normal": "medium", "hard": "high"}
"""Our tiers by the name whose cap they have."""
EFFORT_NAMES = (*CAPS, "auto", *OURS)
LEAST_THINKING = 32
"""Thinking tokens: fewer are none, for closing the thinking takes some of them."""


def parse_effort_caps(changes: Mapping[str, int]) -> dict[str, int]:
    """The table with a server's changes; raises OptionError for an effort that has no cap, or a cap below 0."""
    for name, cap in changes.items():
        if name not in CAPS or name == "none":
            raise unknown("effort", name, [known for known in CAPS if known != "none"])
        if cap < 0:
            raise OptionError(f"the budget of effort {name!r} is {cap}; accepted: 0 or more tokens")
    return {**CAPS, **changes}


def effort_budgets(caps: Mapping[str, int], effort: str, budget: int | None) -> dict[str, Budget]:
    """Tier -> what it allows, where `effort` was asked for; budget: tokens that were asked for beside it."""
    made = {tier: replace(TIERS[tier], thinking=caps[name]) for tier, name in OURS.items()}
    if effort == "auto":
        if budget is not None:
            made = {tier: replace(one, thinking=min(one.thinking, budget)) for tier, one in made.items()}
    elif (tier := canonical_effort(effort)) != "none":
        made[tier] = replace(made[tier], thinking=caps[OURS.get(effort, effort)] if budget is None else budget)
    return {"none": TIERS["none"], **made}


def answer_reserve(limit: int, reserve: int | None) -> int:
    """Tokens kept for the answer out of `limit`: what is usual, but never more than half."""
    return min(ANSWER_RESERVE if reserve is None else reserve, max(1, limit // 2))
