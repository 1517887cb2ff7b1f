"""Samples that branch off from thoughts of others, so that good thinking is not written twice."""

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

    A fork lies before the thought with the lowest mean confidence (see `ConfidenceTracker`) among those where no branch
    starts yet: the branch keeps what came before it and continues differently. Its beginning is read once more, which
    counts as `recomputed`. The vote is settled early as in `Majority`; branches share their beginnings, so their votes
    are worth less than independent ones.

    Attributes:
        most_tokens: sampled in all; then every sample is stopped.
    """

    name: ClassVar[str] = "tree"
    signals: ClassVar[bool] = True
    roots: int = 2
    width: int = 2
    most_tokens: int | None = None

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        if not 1 <= self.roots <= k or self.width < 1:
            raise OptionError(
                f"roots are {self.roots} of {k} samples, width {self.width}; accepted: 1 to {k}, 1 or more"
            )
        return _TreeVote(k, self)


class _TreeVote(VoteState):
    def __init__(self, k: int, rule: Tree) -> None:
        super().__init__(k)
        self.rule = rule
        self._tokens = 0
        self._forks: list[tuple[float, int, int]] = []  # confidence of the next thought, sample, thinking tokens before

    def start_samples(self) -> list[Branch]:
        """See `VoteState.start_samples`."""
        if not self.started:
            return self._start([ROOT] * self.rule.roots)
        branch = ROOT
        if self._forks:
            fork = min(self._forks)
            self._forks.remove(fork)
            branch = Branch(fork[1], fork[2])
        return self._start([branch] * min(self.rule.width, self.k - self.started))

    def add_token(self, sample: int, confidence: float) -> None:
        """See `VoteState.add_token`."""
        self._tokens += 1
        if self._tokens == self.rule.most_tokens:
            self._decide(f"{self._tokens} tokens are sampled")

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        """See `VoteState.finish`."""
        self._forks += [(confidence, sample, end) for (end, _), (_, confidence) in pairwise(thoughts)]
        super().finish(sample, answer, thoughts)
