"""Escalate: where thinking on will not repair what the model has, a larger model thinks instead.

The other end of the readiness probe. Where it ends the thinking because the answer stands, that is fine; where it ends
it because all is lost, or where the model itself stops and is probably wrong, another model may do better. A cascade
that decides by what the thinking shows, not by the question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...errors import OptionError
from ...probes.features import features
from ...probes.io import StoredRule
from ...probes.rule import RuleState
from ..probe_registry import load_stop_rule
from ..thought_features import FeatureTracker
from ..types import BindContext, Capability
from .base import Delegate, Policy, PolicyView, Wait, Watching, bound_field
from .readiness import StopRulePolicy


@dataclass(frozen=True, slots=True)
class Escalate(StopRulePolicy):
    """Hand the thinking to the helper where an answer is probably wrong and thinking on repairs nothing.

    Attributes:
        probes: as for `Readiness`.
        min_right: the helper takes over below this probability of being right; the higher, the more goes to it.
        tokens: most that the helper writes.
        restart: the helper thinks from the question on, under its own control; otherwise it continues from there, after
            `prefix`, and may believe what it reads.
    """

    name: ClassVar[str] = "escalate"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.KV_ROLLBACK, Capability.HELPER}
    )
    probes: str | None = None
    min_right: float = 0.5
    tokens: int = 1024
    restart: bool = True
    prefix: str = "Wait,"
    rule: StoredRule | None = bound_field()

    def __post_init__(self) -> None:
        if not 0 < self.min_right <= 1:
            raise OptionError(f"min_right is {self.min_right}; accepted: a probability above 0 and up to 1")

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError if there is no probe for this model."""
        if self.rule is not None:
            return self
        return replace(self, rule=load_stop_rule(context.engine, self.probes or context.probes, trials=False))

    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        """See `StopRulePolicy.follow`."""
        state, tracker, right, score = RuleState(rule.rule), FeatureTracker(), 1.0, 0.0
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought", or_close=True)
            if not view.closing and (thoughts := tracker.update(view.thinking)):
                score = state.score_free(features(thoughts), view.state(rule.layer))
                right = score - state.hopeless
            stops = view.closing or (rule.threshold is not None and score >= rule.threshold)
            if right < self.min_right and stops:
                reason = f"the answer is probably wrong ({right:.4f} right), thinking on repairs nothing ({score:.4f})"
                prefix = "" if self.restart else self.prefix
                yield Delegate(self.tokens, reason, prefix=prefix, restart=self.restart)
                return
