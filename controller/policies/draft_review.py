"""A larger model reviews what a smaller one thinks, and rewrites what it rejects.

`Sirius` as in Sirius (arXiv 2409.03856): every few tokens, from the first token on that the larger model finds too
unlikely. `SpecReason` as in SpecReason (arXiv 2504.07891): thought by thought, where its grade is too low. As long as
the larger model agrees, both need a prefill of it and none of its decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..types import Capability
from ..verification import ReviewCriterion
from .base import Policy, PolicyView, ReviewDraft, Wait, Watching

_REQUIRES = frozenset({Capability.KV_ROLLBACK, Capability.HELPER, Capability.DRAFT_REVIEW})


@dataclass(frozen=True, slots=True)
class Sirius(Policy):
    """Let the helper check every `every` tokens.

    Attributes:
        min_probability: rewrite from the first token on that the helper gives less. The paper's value is 0.1.
        tokens: how many it then writes, the first in place of the rejected one. The paper's value is 1.
    """

    name: ClassVar[str] = "sirius"
    requires: ClassVar[frozenset[Capability]] = _REQUIRES
    every: int = 16
    min_probability: float = 0.1
    tokens: int = 1

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        checked = 0
        while True:
            yield Wait(at=checked + self.every, boundary="token")
            criterion = ReviewCriterion(self.min_probability)
            yield ReviewDraft(self.tokens, "checked", view.tokens - checked, criterion)
            checked = view.tokens


@dataclass(frozen=True, slots=True)
class SpecReason(Policy):
    """Let the helper grade each thought from 0 to 9, and rewrite thoughts below `min_grade`.

    Attributes:
        min_grade: the paper's scripts accept from 7 on.
        tokens: most that the helper writes for one thought.
    """

    name: ClassVar[str] = "specreason"
    requires: ClassVar[frozenset[Capability]] = _REQUIRES
    min_grade: float = 7.0
    tokens: int = 256

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        graded = 0
        while True:
            yield Wait(at=graded + 1)
            criterion = ReviewCriterion(self.min_grade, "grade")
            yield ReviewDraft(self.tokens, "graded", view.tokens - graded, criterion, one_thought=True)
            graded = view.tokens
