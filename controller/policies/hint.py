"""ConciseHint (arXiv 2506.18810): ask for brevity in the middle of thinking, the more rarely the longer it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Inject, View, Wait, Watching


@dataclass(frozen=True, slots=True)
class ConciseHint:
    """Inject `text` once per block of tau = min(longest, alpha + beta * tokens) thinking tokens.

    The place within a block moves from its head to 80 % of it as blocks grow, then to the next sentence end. The paper
    injects into a finished block and re-reads the rest; here the hint is set when its place is reached, which re-reads
    nothing. earliest: no hint before this many tokens (the paper's formula sets the first one at once, before there is
    anything to shorten). limit: most hints per thinking.
    """

    name: ClassVar[str] = "hint"
    needs: ClassVar[frozenset[str]] = frozenset()
    text: str = "[Be concise.]"
    alpha: int = 128
    beta: float = 0.2
    longest: int = 1024
    earliest: int = 32
    limit: int = 16

    def interval(self, tokens: int) -> int:
        """Length of the block that starts after `tokens` thinking tokens."""
        return min(self.longest, int(self.alpha + self.beta * tokens))

    def watch(self, view: View) -> Watching:
        """See `Policy.watch`."""
        start = 0
        for number in range(1, self.limit + 1):
            tau = self.interval(start)
            place = start + int(tau * min((tau - self.alpha) / 1024, 0.8))
            view = yield Wait(at=max(1, self.earliest, place), boundary="sentence")
            yield Inject(self.text, f"hint {number}, block of {tau} tokens")
            start = max(start + tau, view.tokens)
