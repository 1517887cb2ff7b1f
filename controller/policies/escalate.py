"""Escalate: where thinking on will not repair what the model has, a larger model thinks instead.

The other end of the readiness probe: where it ends the thinking because the answer stands, that is right; where it ends
it because all is lost, or where the model itself ends it and is likely wrong, another model may know better. A cascade
that decides by what the thinking shows, not by the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import OptionError
from ...probes.features import features
from ...probes.rule import RuleState, StopRule
from ..thought_features import FeatureTracker
from ..types import Engine
from .base import Delegate, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True, slots=True)
class _BoundEscalate:
    """Hand a thinking over where an answer now is right with a chance below `least` and thinking on repairs nothing.

    stop: the score from which thinking on counts as repairing nothing, None where only the model's own end does. layer:
    of the hidden state that the rule reads. tokens: most that the helper writes. anew: it thinks from the question on.
    lead: what it goes on from where it does not.
    """

    name: ClassVar[str] = "escalate"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "crop", "helper"})
    rule: StopRule
    layer: int
    stop: float | None
    least: float
    tokens: int
    anew: bool = True
    lead: str = "Wait,"
    learned_from: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """See `Policy`."""
        return (self.layer,)

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        walk, readings, right, over = RuleState(self.rule), FeatureTracker(), 1.0, 0.0
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought", closes=True)
            if not view.closing and (thoughts := readings.update(view.thinking)):
                over = walk.score_free(features(thoughts), view.state(self.layer))
                right = over - walk.hopeless
            if right < self.least and (view.closing or (self.stop is not None and over >= self.stop)):
                reason = f"{right:.4f} sure that the answer is right, {over:.4f} that thinking on repairs nothing"
                yield Delegate(self.tokens, reason, lead="" if self.anew else self.lead, anew=self.anew)
                return


@dataclass(frozen=True, slots=True)
class Escalate:
    """Hand over to the helper what the readiness probe of the model at hand takes for lost.

    probes: as for `readiness`. least: the chance of being right below which the helper takes over; the higher, the more
    goes to it. tokens: most that it writes. anew: what was thought is taken back, and the helper thinks from the
    question on under its own control; otherwise it goes on from there, after `lead`, and may believe what it reads.
    """

    name: ClassVar[str] = "escalate"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "crop", "helper"})
    probes: str | None = None
    least: float = 0.5
    tokens: int = 1024
    anew: bool = True
    lead: str = "Wait,"

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise OptionError(f"least is {self.least}; accepted: a chance of being right, above 0 and up to 1")

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError if there is no probe for this model."""
        from ..probe_registry import load_stop_rule

        stored = load_stop_rule(engine, self.probes, trials=False)
        return _BoundEscalate(
            stored.rule,
            stored.layer,
            stored.threshold,
            self.least,
            self.tokens,
            self.anew,
            self.lead,
            stored.learned_from,
        )

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: settings alone decide nothing."""
        raise TypeError("an Escalate must be bound to an engine first; a session does that")
