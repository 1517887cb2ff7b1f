"""What the readiness probe does besides ending the thinking: it sends the model, or a larger one, on where it is wrong.

`Escalate` is a cascade that decides by what the thinking shows, not by the question: where the probe would end the
thinking because all is lost, or the model itself stops and is probably wrong, a larger model thinks instead.
`Reconsider` updates the belief in a tier: a question that was taken for easy shows by its entropies that it is not,
and gets a second look instead of a wrong answer. Budget forcing (s1, arXiv 2501.19393) appends "Wait" without a reason;
here a probe gives one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import OptionError
from ...probes.io import StoredRule
from ...probes.rule import RuleState
from ..types import Capability
from .base import BOUND, Delegate, Inject, PolicyView, Wait, Watching
from .readiness import FeatureTracker, StopRulePolicy


@dataclass(frozen=True, slots=True)
class Escalate(StopRulePolicy):
    """Hand the thinking to the helper where an answer is probably wrong and thinking on repairs nothing."""

    name: ClassVar[str] = "escalate"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.KV_ROLLBACK, Capability.HELPER}
    )
    probes: str | None = None
    min_right: float = 0.5
    """The helper takes over below this probability of being right; the higher, the more goes to it."""
    tokens: int = 1024
    restart: bool = True
    """The helper thinks from the question on, under its own control; otherwise it continues from there, after `prefix`,
    and may believe what it reads."""
    prefix: str = "Wait,"
    rule: StoredRule | None = field(default=None, repr=False, hash=False, metadata=BOUND)

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
    """Continue the thinking where the readiness probe is not sure enough that it is complete."""

    name: ClassVar[str] = "reconsider"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.RETRACT}
    )
    probes: str | None = None
    threshold: float = 0.6  # thinking continues below this score
    limit: int = 2  # how often at most
    cue: str = "Wait,"
    rule: StoredRule | None = field(default=None, repr=False, hash=False, metadata=BOUND)

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
