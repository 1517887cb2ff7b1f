"""Exits that need no probe: at the budget, where stated answers agree, and where thinking runs in circles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..text.answers import Finality, find_statements
from ..text.evidence import AnswerEvidence, Claim
from ..text.loops import LoopDetector, describe_loop
from ..text.markers import CLOSING_SENTENCE
from ..text.regions import TOOL_CALL
from ..text.tokenizer_adapter import get_adapter
from ..types import BindContext
from .base import BOUND, Close, Note, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class BudgetForcing(Policy):
    """Close the thinking so that it never exceeds `budget.thinking`, the closing itself counted.

    Code and math are cut only where the budget ends; a tool call may take half of the answer's reserve.

    Budget forcing of s1 (arXiv 2501.19393) and the Qwen3 report (4.3).
    """

    name: ClassVar[str] = "budget"
    slack: int = 24  # tokens before the limit where the end of a sentence is good enough; more in long thinking

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        limit = max(1, view.budget.thinking - view.closing_cost)
        at, last = max(1, limit - max(self.slack, min(limit // 128, 128))), limit
        while view.tokens < last:
            yield Wait(at=at, boundary="sentence", deadline=last, protected=True)
            if (region := view.thinking.protected) is None:
                break
            at, last = view.tokens + 1, limit + (view.budget.reserve // 2 if region == TOOL_CALL else 0)
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
            claim = evidence.find_answer(view.thinking.text_from(min(read, view.tokens)))
            read = view.tokens
            if claim is not None and (support := self.find_support(claim)):
                yield Close(f"{support} the answer {claim.answer}", phrase="")
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


@dataclass(frozen=True, slots=True)
class Repetition(Policy):
    """Close once the thinking goes round in circles: `tokens` of it said only what had been said twice before.

    TrimR (arXiv 2505.17155) ends exact repetition by a rolling hash; this one also ends copies with small changes,
    enumerations that only count on, and a few sentences that come again and again. The numbers are ours.
    """

    name: ClassVar[str] = "repetition"
    tokens: int = 210
    counting: int = 2000
    """Tokens for which an enumeration of several numbers goes on beyond that, as cases are also counted out."""
    window: int = 810
    """Tokens in which all three must lie: twice the longest period."""
    vocabulary: int = 4096
    """Models with fewer tokens than this, as the embedded ones, are left alone: they always re-check in equal words."""
    phrase: str = "I have thought enough and answer now."
    active: bool = field(default=True, metadata=BOUND)

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`."""
        if context.engine is None:
            return self
        return replace(self, active=get_adapter(context.engine.tokenizer).vocabulary >= self.vocabulary)

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        if not self.active:
            return
        detector, read = LoopDetector(view.thinking.codec.kinds, self.window), 0
        limit, since = detector.score_after(self.tokens), 0
        while True:
            yield Wait(at=view.tokens + detector.tokens_to(limit), boundary="token", protected=True)
            new, read = view.thinking.ids[min(read, view.tokens) :], view.tokens
            if detector.read(new) < limit:
                since = view.tokens
                continue
            if detector.counts and view.tokens - since < self.counting:
                continue
            kind = describe_loop(view.thinking.ids)
            if view.thinking.protected == TOOL_CALL:
                yield Wait(at=view.tokens, boundary="token")
            yield Close(f"loop: {kind}", self.phrase)
            return
