"""From a row's thinking to what the probes read of each thought."""

from __future__ import annotations

from collections.abc import Sequence

from ..probes.features import ThoughtReading
from .text.answers import extract_stated_answer
from .text.thoughts import ThinkingState, Thought
from .types import Signals


class FeatureTracker:
    """The readings of a growing thinking, each thought read once."""

    def __init__(self) -> None:
        self.thoughts: list[ThoughtReading] = []

    @property
    def stated(self) -> str | None:
        """The latest answer stated."""
        return next((t.answer for t in reversed(self.thoughts) if t.answer is not None), None)

    def update(self, thinking: ThinkingState) -> Sequence[ThoughtReading]:
        """Read the thoughts that have ended since the last call; all readings so far."""
        for thought in thinking.thoughts[len(self.thoughts) :]:
            self.thoughts.append(_read(thought, thinking.signals[thought.start : thought.end]))
        return self.thoughts


def _read(thought: Thought, signals: Sequence[Signals | None]) -> ThoughtReading:
    seen = [s for s in signals if s is not None]
    if not seen:  # none were asked for: as sure as can be
        seen = [Signals(0.0, 1.0, 1.0, 1.0)]
    entropies = [s.entropy for s in seen]
    return ThoughtReading(
        tokens=thought.end - thought.start,
        reflective=thought.reflective,
        answer=extract_stated_answer(thought.text),
        entropy_mean=sum(entropies) / len(entropies),
        entropy_max=max(entropies),
        entropy_last=entropies[-1],
        top_min=min(s.top for s in seen),
        margin_mean=sum(s.margin for s in seen) / len(seen),
    )
