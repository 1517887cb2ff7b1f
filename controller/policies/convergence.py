"""Convergence exit: stop once the thinking has stated the same answer often enough in a row.

The consensus rule of TrimR (arXiv 2505.17155) with equal strings in place of its verifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..text.answers import extract_stated_answer
from .base import Close, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class Convergence(Policy):
    """Close when `agree` successive stated answers are equal.

    Attributes:
        gap: an answer repeated within this many tokens counts once.
    """

    name: ClassVar[str] = "convergence"
    agree: int = 2
    gap: int = 12

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        read, run, last, last_at = 0, 0, "", -self.gap
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            thoughts = view.thinking.thoughts
            for thought in thoughts[read:]:
                answer = extract_stated_answer(thought.text)
                if answer is None or (answer == last and thought.end - last_at < self.gap):
                    continue
                run = run + 1 if answer == last else 1
                last, last_at = answer, thought.end
            read = len(thoughts)
            if run >= self.agree:
                reason = f"{run} successive answers agree on {last}" if run > 1 else f"the answer {last} was stated"
                yield Close(reason, phrase="")
                return
