"""Exits by trial answers: DEER, where one is confident, Dynasor, where several agree, and EAT, where doubt settles.

Constants and prompts are those of the authors' code (iie-ycx/DEER, hao-ai-lab/Dynasor, xidulu/EAT). Differences are
documented at each policy.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import CapabilityError, OptionError
from ..text.values import find_closing_brace
from ..types import BindContext, Capability
from .base import Action, Close, Policy, PolicyView, Trial, TrialAnswer, TrialPrompt, Wait, Watching

DEER_PROMPT = TrialPrompt("\n**Final Answer**\n\\boxed{", 20)
CERTAINDEX_PROMPT = TrialPrompt(
    "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{", 20, whole=True
)

EAT_PROMPT = TrialPrompt("", 1, closes=True)


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
    most: int = 10
    """Most trials of a sequence."""
    cues: Sequence[str] = ("Wait",)
    prompt: TrialPrompt | None = DEER_PROMPT
    """None asks as `Trial` does by default, behind the end of the thinking."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cues", tuple(self.cues))
        if not self.cues or not all(self.cues):
            raise OptionError(f"cues are {self.cues!r}; accepted: one or more texts, none of them empty")

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
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
        """See `Policy.watch`."""
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
        """See `Policy.watch`."""
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
