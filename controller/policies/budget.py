"""Budget forcing (s1, arXiv 2501.19393; Qwen3 report 4.3): thinking ends at its budget, at a sentence if one is near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Close, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class BudgetForcing(Policy):
    """Close the thinking so that it never exceeds `budget.thinking`, the closing itself counted.

    Attributes:
        slack: how many tokens before the limit the end of a sentence is good enough to stop at.
    """

    name: ClassVar[str] = "budget"
    slack: int = 24

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        limit = max(1, view.budget.thinking - view.closing_cost)
        yield Wait(at=max(1, limit - self.slack), boundary="sentence", deadline=limit)
        yield Close(f"budget of {view.budget.thinking} thinking tokens ({view.budget.tier}) is used up")
