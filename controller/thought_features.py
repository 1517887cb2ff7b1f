"""From thinking to the features that probes read of each thought."""

from __future__ import annotations

from collections.abc import Sequence

from ..probes.features import ThoughtReading
from .text.answers import extract_stated_answer
from .text.thoughts import ThinkingState, Thought
from .types import Signals


class FeatureTracker:
    """The readings of growing thinking; each thought is read once."""

    def __init__(self) -> None:
        self.thoughts: list[ThoughtReading] = []

    @property
    def stated(self) -> str | None:
        """The latest stated answer."""
        return next((t.answer for t in reversed(self.thoughts) if t.answer is not None), None)

    def update(self, thinking: ThinkingState) -> Sequence[ThoughtReading]:
        """Read the thoughts that have ended since the last call; return all readings so far."""
        for thought in thinking.thoughts[len(self.thoughts) :]:
            self.thoughts.append(_read(thought, thinking.signals[thought.start : thought.end]))
        return self.thoughts


def _read(thought: Thought, signals: Sequence[Signals | None]) -> ThoughtReading:
    values = [s for s in signals if s is not None]
    if not values:  # none were requested: as certain as possible
        values = [Signals(0.0, 1.0, 1.0, 1.0)]
    entropies = [s.entropy for s in values]
    return ThoughtReading(
        tokens=thought.end - thought.start,
        reflective=thought.reflective,
        answer=extract_stated_answer(thought.text),
        entropy_mean=sum(entropies) / len(entropies),
        entropy_max=max(entropies),
        entropy_last=entropies[-1],
        top_min=min(s.top for s in values),
        margin_mean=sum(s.margin for s in values) / len(values),
    )
