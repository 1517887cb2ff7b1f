"""Exits that need no probe: at the budget, where answers or trial answers agree or are sure, where thinking circles.

Constants and prompts of DEER, Dynasor and EAT are those of the authors' code (iie-ycx/DEER, hao-ai-lab/Dynasor,
xidulu/EAT); each policy names its differences.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ...errors import CapabilityError, OptionError
from ..text.answers import Finality, find_statements
from ..text.evidence import AnswerEvidence, Claim
from ..text.loops import LoopDetector, describe_loop
from ..text.markers import CLOSING_SENTENCE
from ..text.regions import TOOL_CALL
from ..text.tokenizer_adapter import get_adapter
from ..text.values import find_closing_brace
from ..types import BindContext, Capability
from .base import BOUND, Action, Close, Note, Policy, PolicyView, Trial, TrialAnswer, TrialPrompt, Wait, Watching

DEER_PROMPT = TrialPrompt("\n**Final Answer**\n\\boxed{", 20)
CERTAINDEX_PROMPT = TrialPrompt(
    "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{", 20, whole=True
)
EAT_PROMPT = TrialPrompt("", 1, closes=True)


@dataclass(frozen=True, slots=True)
class BudgetForcing(Policy):
    """Close the thinking so that it never exceeds `budget.thinking`: budget forcing (s1, arXiv 2501.19393; Qwen3, 4.3).

    Code and math are cut only where the budget ends; a tool call may take half of the answer's reserve.
    """

    name: ClassVar[str] = "budget"
    slack: int = 24  # tokens before the limit where the end of a sentence is good enough; more in long thinking

    def watch(self, view: PolicyView) -> Watching:
        limit = max(1, view.budget.thinking - view.closing_cost)  # one token, if there is room for none
        at, last = limit - max(min(self.slack, limit // 4), min(limit // 128, 128)), limit
        while view.tokens < last:
            yield Wait(at=at, boundary="sentence", deadline=last, protected=True)
            if (region := view.thinking.protected) is None:
                break
            at, last = view.tokens + 1, limit + (view.budget.reserve // 2 if region == TOOL_CALL else 0)
        reason = f"budget of {view.budget.thinking} thinking tokens ({view.budget.tier}) is used up"
        yield Close(reason, phrase=self.phrase(view, limit - view.tokens))

    def phrase(self, view: PolicyView, room: int) -> str | None:
        """The closing sentence with the best answer, if it fits in `room` tokens; None is the plain one."""
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
    growth: int = 256
    """Beyond 8 times as many tokens, thinking is read again when it has grown by one for each so many beyond them."""

    def __post_init__(self) -> None:
        if not all(type(value) is int and value > 0 for value in (self.agree, self.stride, self.growth)):
            raise OptionError(
                f"agree is {self.agree!r}, stride {self.stride!r} and growth {self.growth!r}; accepted: whole numbers, "
                "1 or more"
            )

    def watch(self, view: PolicyView) -> Watching:
        evidence = AnswerEvidence(view.question)
        if evidence.asked.open:
            yield Note("the question asks for a text or for several things, where equal answers are no sign of the end")
            return
        read = 0
        while True:
            claim, finality = yield from self.find_claim(view, evidence, read)
            read = view.tokens
            if reason := (yield from self.judge(view, claim, finality)):
                yield Close(reason, phrase="")
                return

    def find_claim(
        self, view: PolicyView, evidence: AnswerEvidence, read: int
    ) -> Generator[Action, Any, tuple[Claim, Finality]]:
        """Wait until the thinking, of which `read` tokens have been read, calls a value the answer."""
        while True:
            pause = max(0, view.tokens // self.growth - 8)
            yield Wait(at=view.tokens + 1 + pause, boundary="thought", sentence_at=view.tokens + self.stride + pause)
            text = view.thinking.text_from(min(read, view.tokens))
            found = evidence.read(text) if self.reads_all else evidence.find_answer(text)
            if found is not None:
                return found
            read = view.tokens

    @property
    def reads_all(self) -> bool:
        """Whether any stated value is judged, and not only one that is called the answer."""
        return False

    def judge(self, view: PolicyView, claim: Claim, finality: Finality) -> Generator[Action, Any, str | None]:
        """The reason to end the thinking at this value; None if there is none."""
        yield from ()
        return f"{support} the answer {claim.answer}" if (support := self.find_support(claim)) else None

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
    window: int = 810  # tokens in which all three must lie: twice the longest period
    vocabulary: int = 4096
    """Models with fewer tokens than this, as the embedded ones, are left alone: they always re-check in equal words."""
    phrase: str = "I have thought enough and answer now."
    active: bool = field(default=True, metadata=BOUND)

    def bind(self, context: BindContext) -> Policy:
        if context.engine is None:
            return self
        return replace(self, active=get_adapter(context.engine.tokenizer).vocabulary >= self.vocabulary)

    def watch(self, view: PolicyView) -> Watching:
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


class TrialPolicy(Policy):
    """A policy that can do nothing where trials have no reply."""

    __slots__ = ()

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises CapabilityError for recorded output without a model that answers trials."""
        if context.engine is None and not context.trials:
            raise CapabilityError(
                f"policy {self.name!r} asks for trial answers, which recorded output does not have; let a small model "
                "give them (--reader MODEL)",
                code="missing_reader",
            )
        return self


@dataclass(frozen=True, slots=True)
class Deer(TrialPolicy):
    """Close before a cue ("Wait") where a trial answer's confidence exceeds `threshold` (DEER, arXiv 2504.15895).

    The confidence is the geometric mean probability within the box. The authors' code takes it for Qwen3, and the
    arithmetic mean for other models; it finds the cue anywhere, which we do where a sentence begins. Where Qwen3 is
    overconfident, it also wants the model to end its thinking behind the trial answer, which we do not ask.
    """

    name: ClassVar[str] = "deer"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGPROBS, Capability.TRIALS})
    threshold: float = 0.95
    most: int = 10  # most trials of a sequence
    cues: Sequence[str] = ("Wait",)
    prompt: TrialPrompt | None = DEER_PROMPT  # None asks as `Trial` does by default, behind the end of the thinking

    def __post_init__(self) -> None:
        object.__setattr__(self, "cues", tuple(self.cues))
        if not self.cues or not all(self.cues):
            raise OptionError(f"cues are {self.cues!r}; accepted: one or more texts, none of them empty")

    def watch(self, view: PolicyView) -> Watching:
        for _ in range(self.most):
            size = yield from self._find_cue(view)
            answer: TrialAnswer | None = yield Trial(prompt=self.prompt, retract=size)
            if answer is not None and answer.confidence > self.threshold:
                yield Close(f"a trial answer has a confidence of {answer.confidence:.3f}", phrase="")
                return

    def _find_cue(self, view: PolicyView) -> Generator[Action, Any, int]:
        """Wait until a sentence has begun with a cue; return how many tokens the cue has."""
        thinking = view.thinking
        while True:
            yield Wait(at=view.tokens + 1, boundary="sentence")
            start, text = view.tokens, ""
            while any(cue.startswith(text) for cue in self.cues):
                yield Wait(at=view.tokens + 1, boundary="token")
                text = thinking.codec.decode(thinking.ids[start:]).lstrip()
                if any(text.startswith(cue) for cue in self.cues):
                    return view.tokens - start
                if not text or thinking.boundary != "token":  # what follows begins here
                    start, text = view.tokens, ""


@dataclass(frozen=True, slots=True)
class Certaindex(TrialPolicy):
    """Close where the last `agree` trial answers, one each `every` tokens, are the same and none sounds unsure.

    Dynasor's exit (Certaindex, arXiv 2412.20993) at its effort "mid". The authors sample the trials, which are greedy
    here, and paste the last one's answer, where here the model answers by itself.
    """

    name: ClassVar[str] = "certaindex"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.TRIALS})
    every: int = 64
    agree: int = 3
    doubts: Sequence[str] = ("wait", "hold", "but", "okay", "no", "hmm")
    """A reply that holds one of them, be it within a word, is unsure."""
    prompt: TrialPrompt | None = CERTAINDEX_PROMPT
    """None asks as `Trial` does by default, behind the end of the thinking."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubts", tuple(self.doubts))
        if self.every < 1 or self.agree < 1:
            raise OptionError(f"every is {self.every} and agree {self.agree}; accepted: 1 or more")

    def watch(self, view: PolicyView) -> Watching:
        answers: list[str] = []  # the latest that are sure and the same
        while True:
            yield Wait(at=(view.tokens // self.every + 1) * self.every, boundary="token")
            reply: TrialAnswer | None = yield Trial(prompt=self.prompt)
            answer = "" if reply is None else self.read(reply)
            answers = [*answers, answer] if answer and answers[-1:] in ([], [answer]) else [answer] * bool(answer)
            if len(answers) >= self.agree:
                yield Close(f"{len(answers)} trial answers in a row are {answer}", phrase="...")
                return

    def read(self, reply: TrialAnswer) -> str:
        """The answer of a trial; "" where its box is empty or not closed, or where it sounds unsure."""
        unsure = any(word in reply.text.lower() for word in self.doubts)
        return "" if unsure or find_closing_brace(reply.text) is None else reply.answer


@dataclass(frozen=True, slots=True)
class EntropyStop(TrialPolicy):
    """Close once the entropy of the token after the closing marker no longer varies (EAT, arXiv 2509.26522).

    After each thought the thinking is closed for one token. The entropies x have an exponential moving average m and a
    moving variance v: m += timescale (x - m), then v += timescale ((x - m)^2 - v), from v = 0. The thinking ends where
    v is below `threshold`, but not before `least` + 2 thoughts. The authors sweep timescale (0.015 to 0.3) and
    threshold and name no default; the values here are ours, `least` is theirs.
    """

    name: ClassVar[str] = "eat"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS, Capability.KV_ROLLBACK})
    timescale: float = 0.2
    threshold: float = 2e-4
    least: int = 25

    def __post_init__(self) -> None:
        if not 0 < self.timescale <= 1 or self.threshold <= 0 or self.least < 0:
            raise OptionError(
                f"timescale is {self.timescale}, threshold {self.threshold} and least {self.least}; accepted: above 0 "
                "to 1, above 0, and 0 or more"
            )

    def watch(self, view: PolicyView) -> Watching:
        mean, variance, count = math.nan, 0.0, 0
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            reply: TrialAnswer | None = yield Trial(prompt=EAT_PROMPT)
            if reply is None or math.isnan(reply.entropy):
                continue
            count += 1
            mean = reply.entropy if count == 1 else mean + self.timescale * (reply.entropy - mean)
            if count > 1:
                variance += self.timescale * ((reply.entropy - mean) ** 2 - variance)
            if count >= self.least + 2 and variance < self.threshold:
                yield Close(f"the entropy of an answer has a variance of {variance:.2g}", phrase="")
                return
