"""Exits that need no probe: at the budget, where stated answers agree, and where thinking runs in circles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..text.answers import Finality
from ..text.evidence import AnswerEvidence, Claim
from ..text.loops import LoopDetector, describe_loop
from ..text.tokenizer_adapter import get_adapter
from ..types import BindContext
from .base import BOUND, Close, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class BudgetForcing(Policy):
    """Close the thinking so that it never exceeds `budget.thinking`, the closing itself counted.

    Budget forcing of s1 (arXiv 2501.19393) and the Qwen3 report (4.3).
    """

    name: ClassVar[str] = "budget"
    slack: int = 24  # how many tokens before the limit the end of a sentence is good enough to stop at

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        limit = max(1, view.budget.thinking - view.closing_cost)
        yield Wait(at=max(1, limit - self.slack), boundary="sentence", deadline=limit)
        yield Close(f"budget of {view.budget.thinking} thinking tokens ({view.budget.tier}) is used up")


@dataclass(frozen=True, slots=True)
class Convergence(Policy):
    """Close when `agree` independent derivations arrived at the same answer, and the model calls it the answer.

    The consensus rule of TrimR (arXiv 2505.17155), with reading in place of its verifier. A restatement is no
    derivation: the model must have reconsidered in between.
    """

    name: ClassVar[str] = "convergence"
    agree: int = 2
    stride: int = 48  # tokens after which the end of a sentence is read too, where thoughts are long

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        evidence, read = AnswerEvidence(view.question), 0
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought", sentence_at=view.tokens + self.stride)
            stated = evidence.read(view.thinking.text_from(min(read, view.tokens)))
            read = view.tokens
            if stated is not None and self.holds(*stated):
                claim = stated[0]
                yield Close(f"{claim.derivations} derivations agree on the answer {claim.answer}", phrase="")
                return

    def holds(self, claim: Claim, finality: Finality) -> bool:
        """Whether the evidence for what was stated last is enough."""
        return (
            finality is Finality.ANSWERS
            and claim.derivations >= self.agree
            and claim.answered >= self.agree - 1
            and claim.agreeing >= min(2, self.agree)
        )


@dataclass(frozen=True, slots=True)
class Repetition(Policy):
    """Close once the thinking goes round in circles: `tokens` of it said only what had been said twice before.

    TrimR (arXiv 2505.17155) ends exact repetition by a rolling hash; this one also ends copies with small changes,
    enumerations that only count on, and a few sentences that come again and again. The numbers are ours.
    """

    name: ClassVar[str] = "repetition"
    tokens: int = 210
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
        detector, read = LoopDetector(view.thinking.codec, self.window), 0
        limit = detector.score_after(self.tokens)
        while True:
            yield Wait(at=view.tokens + detector.tokens_to(limit), boundary="token", protected=True)
            new, read = view.thinking.ids[min(read, view.tokens) :], view.tokens
            if detector.read(new) < limit:
                continue
            kind = describe_loop(view.thinking.ids)
            if view.thinking.protected == "tool call":
                yield Wait(at=view.tokens, boundary="token")
            yield Close(f"loop: {kind}", self.phrase)
            return
