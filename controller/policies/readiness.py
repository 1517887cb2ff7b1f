"""Readiness exit: stop thinking where learnt evidence says that answering now is as right as thinking on.

Free evidence first (entropies and the hidden state at the end of a thought), a trial answer (DEER, arXiv 2504.15895;
consistency of trials as in Dynasor) only where that is undecided. The threshold comes with a certificate of the harm it
can do (`probes.risk_control`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...probes.features import features
from ...probes.rule import RuleState, StopRule
from ..drift import BatchDriftTracker
from ..thought_features import FeatureTracker
from ..types import Engine
from .base import Close, Policy, PolicyView, Trial, Wait, Watching


@dataclass(frozen=True, slots=True)
class _BoundReadiness:
    """Close at the first thought whose score reaches `threshold`.

    The score is the chance that thinking on would repair nothing: because the answer stands, or because it is out of
    reach, so that one threshold ends both. threshold: None never closes. layer: of the hidden state that the rule
    reads. drift: is told the first thought of each row.
    """

    name: ClassVar[str] = "readiness"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden"})
    rule: StopRule
    layer: int
    threshold: float | None
    learned_from: frozenset[str] = frozenset()
    drift: BatchDriftTracker | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """See `Policy`."""
        return (self.layer,)

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        if self.threshold is None:
            yield Wait(at=1 << 60)
            return
        walk, readings = RuleState(self.rule), FeatureTracker()
        tell = None if self.drift is None else self.drift.begin()  # of first thoughts, which a branch has behind it
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
            if not (thoughts := readings.update(view.thinking)):
                continue
            end = view.tokens
            score = walk.score_free(features(thoughts), view.state(self.layer))
            if tell is not None and len(thoughts) == 1:
                tell(walk.row)
            how = ""
            if walk.wants_trial(score, end):
                view = yield Trial()
                if (reply := view.reply) is not None:
                    score = walk.score_with_trial(reply.answer, reply.confidence, reply.tokens, readings.stated)
                    how = f", after a trial answer of {reply.answer!r} ({reply.confidence:.3f} sure)"
            if score >= self.threshold:
                yield Close(f"{_finding(score, walk.hopeless)}{how}", phrase="")
                return


def _finding(score: float, hopeless: float) -> str:
    """Why the thinking ends here."""
    if hopeless > score / 2:
        return f"hopeless: {score:.4f} sure that thinking on repairs nothing, {hopeless:.2f} that all is lost"
    return f"ready: {score:.4f} sure that thinking on adds nothing"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The readiness exit of the model at hand: its probe and certified threshold are found when the model is known.

    probes: folder of `tersely calibrate`; None takes what is released with tersely. trials: whether trial answers are
    asked for where free evidence is undecided; None as saved more on the calibration split. threshold: in place of the
    certified one.
    """

    name: ClassVar[str] = "readiness"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden"})
    probes: str | None = None
    trials: bool | None = None
    threshold: float | None = None

    def bind(self, engine: Engine) -> Policy:
        """See `Policy`; raises ProbeError if there is no probe for this model."""
        from ..probe_registry import load_stop_rule

        stored = load_stop_rule(engine, self.probes, self.trials)
        threshold = stored.threshold if self.threshold is None else self.threshold
        return _BoundReadiness(
            stored.rule, stored.layer, threshold, stored.learned_from, BatchDriftTracker(stored.region)
        )

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: settings alone decide nothing."""
        raise TypeError("a Readiness must be bound to an engine first; a session does that")
