"""Reconsider: where the model ends its thinking while the evidence says that it is wrong, make it think on.

The belief in a tier, updated as the thinking unfolds: a question that was taken for easy shows by its entropies that it
is not, and gets a second look instead of a wrong answer. Budget forcing's other half (s1, arXiv 2501.19393, appends
"Wait" without a reason; here a probe gives one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...probes.features import features
from ...probes.rule import RuleState, StopRule
from ..thought_features import FeatureTracker
from ..types import Engine
from .base import Inject, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class _BoundReconsider:
    """Take back the end of a thinking whose last thought scores below `threshold`, at most `limit` times."""

    name: ClassVar[str] = "reconsider"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "retract"})
    rule: StopRule
    layer: int
    threshold: float
    limit: int
    cue: str
    learned_from: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """See `Policy`."""
        return (self.layer,)

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        readings = FeatureTracker()
        for _ in range(self.limit):
            view = yield Wait(boundary="close")
            while not (thoughts := readings.update(view.thinking)) or view.tokens >= view.budget.thinking // 2:
                view = yield Wait(boundary="close")
            score = RuleState(self.rule).score_free(features(thoughts), view.state(self.layer))
            if score >= self.threshold:
                continue
            yield Inject(self.cue, f"only {score:.4f} sure that thinking on adds nothing", after=" ")


@dataclass(frozen=True, slots=True)
class Reconsider:
    """Think on where the readiness probe of the model at hand is not sure enough.

    probes: as for `readiness`. threshold: the score below which thinking goes on. limit: how often. cue: what begins
    the second look.
    """

    name: ClassVar[str] = "reconsider"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "retract"})
    probes: str | None = None
    threshold: float = 0.6
    limit: int = 2
    cue: str = "Wait,"

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError if there is no probe for this model."""
        from ..probe_registry import load_stop_rule

        stored = load_stop_rule(engine, self.probes, trials=False)
        return _BoundReconsider(stored.rule, stored.layer, self.threshold, self.limit, self.cue, stored.learned_from)

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: settings alone decide nothing."""
        raise TypeError("a Reconsider must be bound to an engine first; a session does that")
