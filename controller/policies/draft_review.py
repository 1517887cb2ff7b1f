"""A larger model looks over what a smaller one thinks, and rewrites what it does not believe.

`Sirius` as in Sirius (arXiv 2409.03856): every few tokens, from the first that the larger model gives too little a
chance on. `SpecReason` as in SpecReason (arXiv 2504.07891): thought by thought, where a grade is too low. Both need a
prefill of the larger model and none of its decoding as long as it agrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..verification import ReviewCriterion
from .base import PolicyView, ReviewDraft, Wait, Watching

_NEEDS = frozenset({"crop", "helper", "review"})


@dataclass(frozen=True, slots=True)
class Sirius:
    """Have the helper check every `every` tokens.

    least: the chance below which it rewrites a token; tokens: that it then writes, the first in place of the one it did
    not believe. Sirius checks 16 at a time, at 0.1, and rewrites one.
    """

    name: ClassVar[str] = "correct"
    needs: ClassVar[frozenset[str]] = _NEEDS
    every: int = 16
    least: float = 0.1
    tokens: int = 1

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        checked = 0
        while True:
            view = yield Wait(at=checked + self.every, boundary="token")
            review = ReviewCriterion(self.least)
            view = yield ReviewDraft(self.tokens, "checked", view.tokens - checked, review)
            checked = view.tokens


@dataclass(frozen=True, slots=True)
class SpecReason:
    """Have the helper grade each thought from 0 to 9, and write it anew where it is graded below `least`.

    tokens: most that it writes for one thought. SpecReason's scripts accept from 7 on.
    """

    name: ClassVar[str] = "grade"
    needs: ClassVar[frozenset[str]] = _NEEDS
    least: float = 7.0
    tokens: int = 256

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        graded = 0
        while True:
            view = yield Wait(at=graded + 1)
            step = view.tokens - graded
            review = ReviewCriterion(self.least, "grade")
            view = yield ReviewDraft(self.tokens, "graded", step, review, thought=True)
            graded = view.tokens
