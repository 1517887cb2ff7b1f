"""Samples that branch off from thoughts of others: what was thought well once is not written twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ....errors import OptionError
from ..vote import ROOT, Branch, VoteState


@dataclass(frozen=True, slots=True)
class Tree:
    """Majority vote of a tree: `roots` samples first, then `width` more from one fork after another.

    A fork lies before the thought whose mean confidence (see `Meter`) is the lowest of those that no branch began at:
    what came before it is kept, and thought on anew. Branches read their beginning once more, which is counted as
    `reprefilled`. The vote is settled early as in `Majority`; branches share what they began with, so that their votes
    say less than independent ones. most_tokens: sampled in all, after which every sample is stopped.
    """

    name: ClassVar[str] = "tree"
    signals: ClassVar[bool] = True
    roots: int = 2
    width: int = 2
    most_tokens: int | None = None

    def poll(self, k: int) -> VoteState:
        """See `Rule.poll`."""
        if not 1 <= self.roots <= k or self.width < 1:
            raise OptionError(
                f"roots are {self.roots} of {k} samples, width {self.width}; accepted: 1 to {k}, 1 or more"
            )
        return _Tree(k, self)


class _Tree(VoteState):
    def __init__(self, k: int, rule: Tree) -> None:
        super().__init__(k)
        self.rule = rule
        self._read = 0
        self._forks: list[tuple[float, int, int]] = []  # confidence of the thought after it, sample, place

    def draw(self) -> list[Branch]:
        """See `VoteState.draw`."""
        if not self.begun:
            return self._begin([ROOT] * self.rule.roots)
        start = ROOT
        if self._forks:
            fork = min(self._forks)
            self._forks.remove(fork)
            start = Branch(fork[1], fork[2])
        return self._begin([start] * min(self.rule.width, self.k - self.begun))

    def read(self, sample: int, confidence: float) -> None:
        """See `VoteState.read`."""
        self._read += 1
        if self._read == self.rule.most_tokens:
            self._decide(f"{self._read} tokens are sampled")

    def ended(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        """See `VoteState.ended`."""
        self._forks += [(confidence, sample, end) for (end, _), (_, confidence) in pairwise(thoughts)]
        super().ended(sample, answer, thoughts)
