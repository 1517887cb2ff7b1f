"""Exits that need no probe: at the budget, where stated answers agree, and where thinking runs in circles."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from ..text.answers import Finality, find_statements
from ..text.evidence import AnswerEvidence, Claim
from ..text.markers import CLOSING_SENTENCE
from .base import Close, Note, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class BudgetForcing(Policy):
    """Close the thinking so that it never exceeds `budget.thinking`, the closing itself counted.

    Budget forcing of s1 (arXiv 2501.19393) and the Qwen3 report (4.3).
    """

    name: ClassVar[str] = "budget"
    slack: int = 24  # tokens before the limit where the end of a sentence is good enough; more in long thinking

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        limit = max(1, view.budget.thinking - view.closing_cost)
        slack = max(self.slack, min(limit // 128, 128))
        yield Wait(at=max(1, limit - slack), boundary="sentence", deadline=limit)
        reason = f"budget of {view.budget.thinking} thinking tokens ({view.budget.tier}) is used up"
        yield Close(reason, phrase=self.phrase(view, limit - view.tokens))

    def phrase(self, view: PolicyView, room: int) -> str | None:
        """The closing sentence with the best answer so far; None is the plain one, and "" leaves it out.

        The best answer must fit in `room` tokens, and a budget of a few dozen has no use for a sentence.
        """
        if view.budget.thinking < 2 * view.closing_cost:
            return ""
        encode, thinking = view.thinking.codec.encode, view.thinking
        stated = [s.answer for s in find_statements(thinking.tail(), view.question) if s.finality >= Finality.ASKED]
        if not stated:
            return None
        phrase = f"{CLOSING_SENTENCE} So far the answer is {stated[-1]}."
        return phrase if len(encode(phrase)) - len(encode(CLOSING_SENTENCE)) <= room else None


@dataclass(frozen=True, slots=True)
class Convergence(Policy):
    """Close when the model calls a value the answer that enough of its thinking agrees on.

    Either `agree` independent derivations arrived at it, two statements in a row; a restatement is no derivation, the
    model must have reconsidered in between. Or no other value was ever called the answer, and then a confirmation
    ("that matches") counts as a derivation, intermediate results in between do not count against it, and so many
    statements in a row are enough by themselves, one more than `agree`. Nothing ends the thinking where a question asks
    for a text or for several things. The consensus rule of TrimR (arXiv 2505.17155), with reading in place of its
    verifier.
    """

    name: ClassVar[str] = "convergence"
    agree: int = 2
    stride: int = 48  # tokens after which the end of a sentence is read too, where thoughts are long

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        evidence, read = AnswerEvidence(view.question), 0
        if evidence.asked.open:
            yield Note("the question asks for a text or for several things, where equal answers are no sign of the end")
            return
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought", sentence_at=view.tokens + self.stride)
            stated = evidence.read(view.thinking.text_from(min(read, view.tokens)))
            read = view.tokens
            if stated is not None and stated[1] is Finality.ANSWERS and (support := self.find_support(stated[0])):
                yield Close(f"{support} the answer {stated[0].answer}", phrase="")
                return

    def find_support(self, claim: Claim) -> str | None:
        """What is enough to stop at this answer, in words; None if nothing is."""
        pair = min(2, self.agree)
        if claim.answered < self.agree - 1:
            return None
        if claim.derivations >= self.agree and claim.agreeing >= pair:
            return f"{claim.derivations} derivations agree on"
        if claim.contested:
            return None
        if claim.derivations + claim.confirmed >= self.agree and claim.insisting >= pair:
            return f"{claim.derivations} derivations and {claim.confirmed} confirmations agree on"
        if claim.agreeing > self.agree:
            return f"{claim.agreeing} statements in a row say"
        return None


_BASE, _PRIME = 1_000_003, (1 << 61) - 1


class RepeatCounter:
    """Counts how often the last `size` tokens occur within the last `window`; overlapping copies count once.

    A rolling hash as in TrimR (arXiv 2505.17155): a few operations per token, however long the runs are.
    """

    def __init__(self, size: int, window: int) -> None:
        self.size, self.window = size, window
        self._run: deque[int] = deque()
        self._hash = 0
        self._out = pow(_BASE, size - 1, _PRIME)
        self._position = 0
        self._starts: dict[int, deque[int]] = {}  # positions of copies that do not overlap, by the hash of the run
        self._order: deque[tuple[int, int]] = deque()

    def add(self, token: int) -> int:
        """Append a token; return how many copies of the run that it ends lie in the window."""
        if len(self._run) == self.size:
            self._hash = (self._hash - (self._run.popleft() + 1) * self._out) % _PRIME
        self._run.append(token)
        self._hash = (self._hash * _BASE + token + 1) % _PRIME
        self._position += 1
        self._forget()
        if len(self._run) < self.size:
            return 0
        starts = self._starts.setdefault(self._hash, deque())
        if not starts or self._position - starts[-1] >= self.size:
            starts.append(self._position)
            self._order.append((self._position, self._hash))
        return len(starts)

    def _forget(self) -> None:
        """Drop copies that are no longer entirely in the window."""
        oldest = self._position - self.window + self.size
        while self._order and self._order[0][0] < oldest:
            _, key = self._order.popleft()
            starts = self._starts[key]
            starts.popleft()
            if not starts:
                del self._starts[key]


@dataclass(frozen=True, slots=True)
class Repetition(Policy):
    """Close once the same `size` tokens have come `times` times within the last `window`; the numbers are ours."""

    name: ClassVar[str] = "repetition"
    size: int = 32
    times: int = 3
    window: int = 1024
    every: int = 64  # tokens between two checks
    phrase: str = "I have thought enough and answer now."

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        repeats, read = RepeatCounter(self.size, self.window), 0
        while True:
            yield Wait(at=view.tokens + self.every, boundary="token")
            new, read = view.thinking.ids[read:], view.tokens
            if max(map(repeats.add, new)) >= self.times:
                yield Close(f"the same {self.size} tokens came {self.times} times", self.phrase)
                return
