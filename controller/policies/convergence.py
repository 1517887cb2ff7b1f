"""Convergence exit: stop once the thinking has stated the same answer often enough in a row.

The consensus rule of TrimR (arXiv 2505.17155) with string-equal answers in place of its verifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..text.answers import extract_stated_answer
from .base import Close, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class Convergence:
    """Close when `agree` successive stated answers are equal.

    gap: an answer repeated within this many tokens is the same statement, not a new one.
    """

    name: ClassVar[str] = "convergence"
    needs: ClassVar[frozenset[str]] = frozenset()
    agree: int = 2
    gap: int = 12

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        seen, run, last, last_at = 0, 0, "", -self.gap
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
            thoughts = view.thinking.thoughts
            for thought in thoughts[seen:]:
                answer = extract_stated_answer(thought.text)
                if answer is None or (answer == last and thought.end - last_at < self.gap):
                    continue
                run = run + 1 if answer == last else 1
                last, last_at = answer, thought.end
            seen = len(thoughts)
            if run >= self.agree:
                reason = f"{run} successive answers agree on {last}" if run > 1 else f"an answer stands: {last}"
                yield Close(reason, phrase="")
                return
