"""Reconsider: where the model ends its thinking while the evidence says that it is wrong, make it think on.

The belief in a tier, updated as the thinking unfolds: a question that was taken for easy shows by its entropies that it
is not, and gets a second look instead of a wrong answer. This is budget forcing's other half (s1, arXiv 2501.19393,
appends "Wait" without a reason; here a probe gives one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...probes.features import features
from ...probes.io import StoredRule
from ...probes.rule import RuleState
from ..probe_registry import load_stop_rule
from ..thought_features import FeatureTracker
from ..types import BindContext, Capability
from .base import Inject, Policy, PolicyView, Wait, Watching, bound_field
from .readiness import StopRulePolicy


@dataclass(frozen=True, slots=True)
class Reconsider(StopRulePolicy):
    """Continue the thinking where the readiness probe is not sure enough that it is complete.

    Attributes:
        probes: as for `Readiness`.
        threshold: thinking continues below this score.
        limit: how often at most.
        cue: begins the second look.
    """

    name: ClassVar[str] = "reconsider"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.RETRACT}
    )
    probes: str | None = None
    threshold: float = 0.6
    limit: int = 2
    cue: str = "Wait,"
    rule: StoredRule | None = bound_field()

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError if there is no probe for this model."""
        if self.rule is not None:
            return self
        return replace(self, rule=load_stop_rule(context.engine, self.probes or context.probes, trials=False))

    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        """See `StopRulePolicy.follow`."""
        tracker = FeatureTracker()
        for _ in range(self.limit):
            yield Wait(boundary="close")
            while not (thoughts := tracker.update(view.thinking)) or view.tokens >= view.budget.thinking // 2:
                yield Wait(boundary="close")
            score = RuleState(rule.rule).score_free(features(thoughts), view.state(rule.layer))
            if score >= self.threshold:
                continue
            yield Inject(self.cue, f"thinking on may still help ({score:.4f} sure that it adds nothing)", after=" ")
