"""Readiness exit: stop thinking where learned evidence says that answering now is as right as thinking on.

Free evidence first (entropies and the hidden state at the end of a thought), a trial answer (DEER, arXiv 2504.15895;
consistency of trials as in Dynasor) only where that is undecided. The threshold comes with a certificate that bounds
the harm it can do (`probes.risk_control`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from ...probes.features import features
from ...probes.io import StoredRule
from ...probes.rule import RuleState
from ..drift import BatchDriftTracker
from ..probe_registry import load_stop_rule
from ..thought_features import FeatureTracker
from ..types import BindContext, Capability
from .base import Close, Policy, PolicyView, Trial, Wait, Watching, bound_field, unbound_error


class StopRulePolicy(Policy):
    """A policy that reads the readiness probe; `bind` puts it into `rule`."""

    __slots__ = ()
    rule: StoredRule | None

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """See `Policy`."""
        return () if self.rule is None else (self.rule.layer,)

    @property
    def provenance(self) -> frozenset[str]:
        """See `Policy`."""
        return frozenset() if self.rule is None else self.rule.learned_from

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        if self.rule is None:
            raise unbound_error(self)
        return self.follow(view, self.rule)

    @abstractmethod
    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        """Follow one sequence by this rule."""
        ...


@dataclass(frozen=True, slots=True)
class Readiness(StopRulePolicy):
    """Close at the first thought whose score reaches the probe's certified threshold.

    The score is the probability that thinking on would repair nothing: because the answer stands, or because it is out
    of reach, so that one threshold ends both.

    Attributes:
        probes: folder of `tersely calibrate`; None uses the pretrained probes of the model.
        trials: whether to ask for trial answers where free evidence is undecided; None does what saved more on the
            calibration split.
        threshold: used in place of the certified one.
    """

    name: ClassVar[str] = "readiness"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
    probes: str | None = None
    trials: bool | None = None
    threshold: float | None = None
    rule: StoredRule | None = bound_field()
    drift: BatchDriftTracker | None = bound_field()

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError if there is no probe for this model."""
        if self.rule is not None:
            return self
        rule = load_stop_rule(context.engine, self.probes or context.probes, self.trials)
        threshold = rule.threshold if self.threshold is None else self.threshold
        return replace(self, threshold=threshold, rule=rule, drift=BatchDriftTracker(rule.region))

    def end_batch(self) -> str | None:
        """See `Policy.end_batch`."""
        return None if self.drift is None else self.drift.end_batch()

    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        """See `StopRulePolicy.follow`."""
        if self.threshold is None:
            return  # nothing could be certified
        state, tracker = RuleState(rule.rule), FeatureTracker()
        report = (
            None if self.drift is None else self.drift.begin()
        )  # first thoughts only: a branch has its own behind it
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            if not (thoughts := tracker.update(view.thinking)):
                continue
            score = state.score_free(features(thoughts), view.state(rule.layer))
            if report is not None and len(thoughts) == 1:
                report(state.row)
            evidence = ""
            if state.wants_trial(score, view.tokens):
                answer = yield Trial()
                if answer is not None:
                    score = state.score_with_trial(answer.answer, answer.confidence, answer.tokens, tracker.stated)
                    evidence = f", after a trial answer of {answer.answer!r} (confidence {answer.confidence:.3f})"
            if score >= self.threshold:
                yield Close(f"{_explain(score, state.hopeless)}{evidence}", phrase="")
                return


def _explain(score: float, hopeless: float) -> str:
    """Why the thinking ends here."""
    if hopeless > score / 2:
        return f"hopeless: thinking on repairs nothing ({score:.4f}), the answer is out of reach ({hopeless:.2f})"
    return f"ready: thinking on adds nothing ({score:.4f})"
