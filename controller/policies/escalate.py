"""Escalate: where the thinking ends and the evidence says that its answer is wrong, a larger model thinks on.

The lower end of the readiness probe: what the small model cannot repair, another may. A cascade that decides after the
small model has tried, by what its own thinking shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...probes.features import features
from ...probes.rule import StopRule, Walk
from ..engines.base import Engine
from ..readings import Readings
from .base import Delegate, Policy, View, Wait, Watching


@dataclass(frozen=True, slots=True)
class HandOver:
    """Take back the end of a thinking whose answer is right with a chance below `threshold`; the helper goes on."""

    name: ClassVar[str] = "escalate"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "crop", "helper"})
    rule: StopRule
    layer: int
    threshold: float
    tokens: int
    lead: str
    anew: bool = False
    learned_from: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """See `Policy`."""
        return (self.layer,)

    def watch(self, view: View) -> Watching:
        """See `Policy.watch`."""
        readings = Readings()
        view = yield Wait(boundary="close")
        while not (thoughts := readings.update(view.thinking)):
            view = yield Wait(boundary="close")
        walk = Walk(self.rule)
        score = walk.free(features(thoughts), view.state(self.layer))
        right = score - walk.hopeless
        if right < self.threshold:
            reason = f"only {right:.4f} sure that the answer is right"
            yield Delegate(self.tokens, reason, lead=self.lead, anew=self.anew)


@dataclass(frozen=True, slots=True)
class Escalate:
    """Hand over to the helper where the readiness probe of the model at hand is not sure that the answer is right.

    probes: as for `readiness`. threshold: the chance of being right below which the helper thinks on. tokens: most that
    it writes. lead: what its thinking begins with. anew: it thinks from the question on, and does not read what the
    model has thought, which it might believe.
    """

    name: ClassVar[str] = "escalate"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "crop", "helper"})
    probes: str | None = None
    threshold: float = 0.5
    tokens: int = 1024
    lead: str = "Wait,"
    anew: bool = False

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError if there is no probe for this model."""
        from ..probing import stop_rule

        stored = stop_rule(engine, self.probes, trials=False)
        return HandOver(
            stored.rule, stored.layer, self.threshold, self.tokens, self.lead, self.anew, stored.learned_from
        )

    def watch(self, view: View) -> Watching:
        """Refuse: settings alone decide nothing."""
        raise TypeError("an Escalate must be bound to an engine first; a session does that")
