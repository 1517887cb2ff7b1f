"""Speculative Thinking (arXiv 2504.12329): a larger model writes the reflective steps of a smaller one.

After each paragraph the small model drafts some tokens. If they sound like affirmation or reflection, the helper writes
in their place; if what then stands verifies something, it writes some more; and after too much reflection it looks for
the step that went wrong.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import ClassVar

from .base import Delegate, Move, PolicyView, Wait, Watching

AFFIRMING = ("yeah", "yes", "final answer", "confident")
REFLECTING = ("wait", "alternatively", "hold on", "another")
VERIFYING = ("verify", "think again", "recap", "check")


def mentions(text: str, words: Iterable[str]) -> int:
    """How often the words occur in a text, as whole words in any case."""
    return sum(len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)) for word in words)


def sentence_polarity(text: str) -> int:
    """1 if a text affirms more than it reflects, -1 if it reflects, 0 if it does neither.

    As in the paper's code, a tie of words that occur reflects; unlike there, words count as whole words only.
    """
    affirming, reflecting = mentions(text, AFFIRMING), mentions(text, (*REFLECTING, *VERIFYING))
    if not affirming and not reflecting:
        return 0
    return 1 if affirming > reflecting else -1


@dataclass(slots=True)
class ReflectionBudget:
    """Counts reflections; says when there were too many, and how long the helper then looks for the reason.

    limit: reflections that are too many, each time `step` more up to `most`; tokens: for the helper, each time `more`
    more up to `longest`.
    """

    limit: int = 15
    step: int = 5
    most: int = 30
    tokens: int = 125
    more: int = 25
    longest: int = 200
    count: int = 0

    def reached(self) -> bool:
        """Whether there were too many."""
        return self.count >= self.limit

    def spend(self) -> int:
        """The helper's tokens for this time; starts counting anew."""
        tokens = self.tokens
        self.count = 0
        self.limit = min(self.limit + self.step, self.most)
        self.tokens = min(self.tokens + self.more, self.longest)
        return tokens


@dataclass(frozen=True, slots=True)
class SpeculativeThinking:
    """Delegate reflective steps to the helper.

    draft: tokens that the model writes after a paragraph before it is judged; takeover: those that the helper writes in
    their place; verify: further ones after what verifies. differ: take over only where the helper's polarity is another
    than the draft's. begin: tokens that the helper writes first of all, for models that do not reason by themselves;
    always: after each paragraph, whatever it sounds like. A neutral draft is kept, where the paper's code writes it
    anew.
    """

    name: ClassVar[str] = "reflect"
    needs: ClassVar[frozenset[str]] = frozenset({"crop", "helper"})
    draft: int = 20
    takeover: int = 20
    verify: int = 125
    begin: int = 0
    always: bool = False
    excess: int = 15
    lead: str = "Let me look for the step that went wrong."

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        excess = ReflectionBudget(limit=self.excess)
        if self.begin:
            view = yield Wait(at=1, boundary="token")
            view = yield Delegate(self.begin, "the first step", take_back=view.tokens)
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
            if excess.reached():
                reason = f"{excess.count} reflective steps"
                view = yield Delegate(excess.spend(), reason, lead=self.lead)
                continue
            start = view.tokens
            view = yield Wait(at=start + self.draft, boundary="token")
            drafted = view.thinking.codec.decode(view.thinking.ids[start:])
            sign = sentence_polarity(drafted)
            if sign or self.always:
                view, drafted = yield from self._take_over(view, start, sign, drafted)
                sign = sentence_polarity(drafted)
                if mentions(drafted, VERIFYING):
                    view = yield Delegate(self.verify, "a verifying step")
            excess.count += sign < 0

    def _take_over(
        self, view: PolicyView, start: int, sign: int, drafted: str
    ) -> Generator[Move, PolicyView, tuple[PolicyView, str]]:
        """Have the draft, which began at `start`, written anew; what stands then, the draft itself if nothing came."""
        kind = {1: "an affirming step", 0: "a step", -1: "a reflective step"}[sign]
        view = yield Delegate(self.takeover, kind, take_back=view.tokens - start)
        return view, drafted if view.helped is None else view.helped
