"""A larger model writes or reviews parts of a smaller one's thinking.

`SpeculativeThinking` (arXiv 2504.12329): after each paragraph the small model drafts some tokens. If they sound like
affirmation or reflection, the helper writes in their place; if the result verifies something, it writes some more; and
after too much reflection it looks for the step that went wrong.

`Sirius` (arXiv 2409.03856): every few tokens the larger model rewrites from the first token on that it finds too
unlikely. `SpecReason` (arXiv 2504.07891): thought by thought, where its grade is too low. As long as the larger model
agrees, both need a prefill of it and none of its decoding.

`Escalate` hands over what a readiness probe holds for lost, and `Reconsider` lets the model itself think on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ...errors import OptionError
from ...probes.io import StoredRule
from ...probes.rule import RuleState
from ..types import Capability
from ..verification import ReviewCriterion
from .base import Delegate, Inject, Policy, PolicyView, ReviewDraft, Wait, Watching
from .readiness import FeatureTracker, StopRulePolicy

AFFIRMING = ("yeah", "yes", "final answer", "confident")
REFLECTING = ("wait", "alternatively", "hold on", "another")
VERIFYING = ("verify", "think again", "recap", "check")


def mentions(text: str, words: Iterable[str]) -> int:
    """Count how often the words occur in a text, as whole words in any case."""
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
    """Counts reflections, and sizes the helper's turn after too many of them."""

    limit: int = 15  # too many reflections; grows by `limit_step` up to `limit_max`
    limit_step: int = 5
    limit_max: int = 30
    tokens: int = 125  # for the helper's turn; grows by `tokens_step` up to `tokens_max`
    tokens_step: int = 25
    tokens_max: int = 200
    count: int = 0

    def exceeded(self) -> bool:
        return self.count >= self.limit

    def spend(self) -> int:
        """Return the helper's tokens for this turn and reset the count."""
        tokens = self.tokens
        self.count = 0
        self.limit = min(self.limit + self.limit_step, self.limit_max)
        self.tokens = min(self.tokens + self.tokens_step, self.tokens_max)
        return tokens


@dataclass(frozen=True, slots=True)
class SpeculativeThinking(Policy):
    """Delegate reflective steps to the helper. A neutral draft is kept, where the paper's code rewrites it."""

    name: ClassVar[str] = "speculative"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_ROLLBACK, Capability.HELPER})
    draft: int = 20  # tokens that the model writes after a paragraph before they are judged
    takeover: int = 20  # tokens that the helper writes in their place
    verify: int = 125  # further tokens after a verifying step
    begin: int = 0  # tokens that the helper writes first of all, for models that do not reason by themselves
    always: bool = False  # take over after each paragraph, whatever it sounds like
    excess: int = 15  # reflective steps after which the helper looks for the mistake
    prefix: str = "Let me look for the step that went wrong."  # what its text then begins with

    def watch(self, view: PolicyView) -> Watching:
        reflections = ReflectionBudget(limit=self.excess)
        if self.begin:
            yield Wait(at=1, boundary="token")
            yield Delegate(self.begin, "the first step", retract=view.tokens)
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            if reflections.exceeded():
                reason = f"{reflections.count} reflective steps"
                yield Delegate(reflections.spend(), reason, prefix=self.prefix)
                continue
            start = view.tokens
            yield Wait(at=start + self.draft, boundary="token")
            drafted = view.thinking.codec.decode(view.thinking.ids[start:])
            polarity = sentence_polarity(drafted)
            if polarity or self.always:
                kind = {1: "an affirming step", 0: "a step", -1: "a reflective step"}[polarity]
                text: str | None = yield Delegate(self.takeover, kind, retract=view.tokens - start)
                drafted = drafted if text is None else text
                polarity = sentence_polarity(drafted)
                if mentions(drafted, VERIFYING):
                    yield Delegate(self.verify, "a verifying step")
            reflections.count += polarity < 0


_REQUIRES = frozenset({Capability.KV_ROLLBACK, Capability.HELPER, Capability.DRAFT_REVIEW})


@dataclass(frozen=True, slots=True)
class Sirius(Policy):
    """Let the helper check every `every` tokens."""

    name: ClassVar[str] = "sirius"
    requires: ClassVar[frozenset[Capability]] = _REQUIRES
    every: int = 16
    min_probability: float = 0.1
    """Rewrite from the first token on that the helper gives less. The authors' value is 0.1."""
    temperature: float = 0.6  # the helper's, at which the authors' code compares probabilities
    tokens: int = 1  # how many it then writes, the first in place of the rejected one. The authors' value is 1.

    def watch(self, view: PolicyView) -> Watching:
        checked = 0
        while True:
            yield Wait(at=checked + self.every, boundary="token")
            criterion = ReviewCriterion(self.min_probability, temperature=self.temperature)
            yield ReviewDraft(self.tokens, "checked", view.tokens - checked, criterion)
            checked = view.tokens


@dataclass(frozen=True, slots=True)
class SpecReason(Policy):
    """Let the helper grade each thought from 0 to 9, and rewrite thoughts below `min_grade`."""

    name: ClassVar[str] = "specreason"
    requires: ClassVar[frozenset[Capability]] = _REQUIRES
    min_grade: float = 7.0  # the authors' script accepts from 7 on
    tokens: int = 512  # most that the helper writes in place of a thought, as there

    def watch(self, view: PolicyView) -> Watching:
        graded = 0
        while True:
            yield Wait(at=graded + 1)
            criterion = ReviewCriterion(self.min_grade, "grade")
            yield ReviewDraft(self.tokens, "graded", view.tokens - graded, criterion, one_thought=True)
            graded = view.tokens


@dataclass(frozen=True, slots=True)
class Escalate(StopRulePolicy):
    """Hand the thinking to the helper where an answer is probably wrong and thinking on repairs nothing.

    A cascade that decides by what the thinking shows, not by the question: where the probe would end the thinking
    because all is lost, or the model itself stops and is probably wrong.
    """

    name: ClassVar[str] = "escalate"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.KV_ROLLBACK, Capability.HELPER}
    )
    min_right: float = 0.5
    """The helper takes over below this probability of being right; the higher, the more goes to it."""
    tokens: int = 1024
    restart: bool = True
    """The helper thinks from the question on, under its own control; otherwise it continues from there, after `prefix`,
    and may believe what it reads."""
    prefix: str = "Wait,"

    def __post_init__(self) -> None:
        if not 0 < self.min_right <= 1:
            raise OptionError(f"min_right is {self.min_right}; accepted: a probability above 0 and up to 1")

    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        state, tracker, right, score = RuleState(rule.rule), FeatureTracker(), 1.0, 0.0
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought", or_close=True)
            if not view.closing and tracker.update(view.thinking):
                score = state.score_free(tracker.features, view.state(rule.layer))
                right = score - state.hopeless
            stops = view.closing or (rule.threshold is not None and score >= rule.threshold)
            if right < self.min_right and stops:
                reason = f"the answer is probably wrong ({right:.4f} right), thinking on repairs nothing ({score:.4f})"
                prefix = "" if self.restart else self.prefix
                yield Delegate(self.tokens, reason, prefix=prefix, restart=self.restart)
                return


@dataclass(frozen=True, slots=True)
class Reconsider(StopRulePolicy):
    """Continue the thinking where the readiness probe is not sure enough that it is complete.

    Budget forcing (s1, arXiv 2501.19393) appends "Wait" without a reason; here a probe gives one.
    """

    name: ClassVar[str] = "reconsider"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.RETRACT}
    )
    threshold: float = 0.6  # thinking continues below this score
    limit: int = 2  # how often at most
    cue: str = "Wait,"

    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        tracker = FeatureTracker()
        for _ in range(self.limit):
            yield Wait(boundary="close")
            while not tracker.update(view.thinking) or view.tokens >= view.budget.thinking // 2:
                yield Wait(boundary="close")
            score = RuleState(rule.rule).score_free(tracker.features, view.state(rule.layer))
            if score >= self.threshold:
                continue
            yield Inject(self.cue, f"thinking on may still help ({score:.4f} sure that it adds nothing)", after=" ")
