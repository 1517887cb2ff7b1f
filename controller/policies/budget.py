"""Budget forcing (s1; Qwen3 report 4.3): thinking ends at its budget, at a sentence if one is near, with a phrase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Close, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class BudgetForcing:
    """Close the thinking so that it never exceeds `budget.thinking`, the closing itself counted.

    slack: how many tokens before the limit a sentence end is good enough to stop at.
    """

    name: ClassVar[str] = "budget"
    needs: ClassVar[frozenset[str]] = frozenset()
    slack: int = 24

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        limit = max(1, view.budget.thinking - view.closing_cost)
        view = yield Wait(at=max(1, limit - self.slack), boundary="sentence", deadline=limit)
        yield Close(f"budget of {view.budget.thinking} thinking tokens ({view.budget.tier}) is used up")
