"""Readiness exit: stop thinking where learned evidence says that answering now is as right as thinking on.

Free evidence first (entropies and the hidden state at the end of a thought), a trial answer (DEER, arXiv 2504.15895;
consistency of trials as in Dynasor) only where that is undecided. The threshold comes with a certificate that bounds
the harm it can do (`probes.risk_control`).

`TextReadiness` does the same for any model by text alone, and `AutoExit` takes the best of both that there is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import CapabilityError
from ...probes.drift import LENGTHS, DriftMonitor, DriftState, Region
from ...probes.io import TEXT, StoredRule, TextProbe
from ...probes.rule import RULE, GrowingFeatures, RuleState, ThoughtReading, combine
from ..probe_registry import ProbeError, load_stop_rule, load_text_probe
from ..text.answers import Finality, extract_stated_answer
from ..text.evidence import Claim
from ..text.thoughts import ThinkingState, Thought
from ..types import BindContext, Capability, Signals
from ..verification import AnswerFinal, VerdictFuture, get_verdict
from .base import BOUND, Action, AskVerifier, Close, Note, Policy, PolicyView, Trial, Wait, Watching, unbound_error
from .exits import Convergence

_RULE = Convergence()  # whose support text probes are calibrated with
Row = NDArray[np.float32]


class FeatureTracker:
    """The readings of growing thinking; each thought is read once."""

    def __init__(self) -> None:
        self.thoughts: list[ThoughtReading] = []
        self.stated: str | None = None  # the latest answer
        self._features = GrowingFeatures()

    @property
    def features(self) -> Row:
        """Those at the end of the last thought, see `GrowingFeatures.values`."""
        return self._features.values()

    def update(self, thinking: ThinkingState) -> Sequence[ThoughtReading]:
        """Read the thoughts that have ended since the last call; return all readings so far."""
        for thought in thinking.thoughts[len(self.thoughts) :]:
            reading = _read(thought, thinking.signals[thought.start : thought.end])
            self.thoughts.append(reading)
            self._features.add(reading)
            self.stated = self.stated if reading.answer is None else reading.answer
        return self.thoughts


def _read(thought: Thought, signals: Sequence[Signals | None]) -> ThoughtReading:
    values = [s for s in signals if s is not None]
    if not values:  # none were requested: as certain as possible
        values = [Signals(0.0, 1.0, 1.0, 1.0)]
    entropies = [s.entropy for s in values]
    return ThoughtReading(
        tokens=thought.end - thought.start,
        reflective=thought.reflective,
        answer=extract_stated_answer(thought.text),
        entropy_mean=sum(entropies) / len(entropies),
        entropy_max=max(entropies),
        entropy_last=entropies[-1],
        top_min=min(s.top for s in values),
        margin_mean=sum(s.margin for s in values) / len(values),
    )


class BatchDriftTracker:
    """Collects the first thought of each sequence of a batch and shows them to a monitor in the batch's order.

    The order matters: the monitor's guarantee is for questions in an order that does not depend on their content, and
    sequences with a short first thought would otherwise always come first.
    """

    def __init__(self, region: Region) -> None:
        self.monitor = DriftMonitor(region)
        self._slots: list[list[Row]] = []

    def begin(self) -> Callable[[Row], None]:
        """Start a sequence; call what is returned with its first thought, if there is one."""
        self._slots.append([])
        return self._slots[-1].append

    def settle(self) -> DriftState:
        """Show the thoughts of the batch to the monitor and return its state."""
        slots, self._slots = self._slots, []
        for row in (slot[0] for slot in slots if slot):
            if np.isfinite(row).all():
                self.monitor.observe(row)
        return self.monitor.state

    def end_batch(self) -> str | None:
        """Settle, and return a note for the traces of the batch if questions have drifted."""
        since = self.settle().since
        if since is None:
            return None
        return (
            f"since question {since} of this session, questions are unlike those that the threshold was certified on; "
            "calibrate on questions like these"
        )


@dataclass(frozen=True, slots=True)
class StopRulePolicy(Policy):
    """A policy that reads the readiness probe; questions unlike those that it knows are left alone, with a note."""

    probes: str | None = None  # folder of `tersely calibrate`; None uses the pretrained probes of the model
    rule: StoredRule | None = field(default=None, repr=False, hash=False, metadata=BOUND)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return () if self.rule is None else (self.rule.layer,)

    @property
    def provenance(self) -> frozenset[str]:
        return frozenset() if self.rule is None else self.rule.learned_from

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError if this model has no probe."""
        if self.rule is not None:
            return self
        rule = load_stop_rule(context.engine, self.probes or context.probes, trials=False)
        return replace(self, rule=rule)

    def watch(self, view: PolicyView) -> Watching:
        if self.rule is None:
            raise unbound_error(self)
        known = self.rule.known
        difference = None if known is None else known.find_difference(view.question)
        return self.follow(view, self.rule) if difference is None else self.decline(view, difference)

    def decline(self, view: PolicyView, difference: str) -> Watching:
        """Say that a question is of another kind, and leave it alone."""
        doubt = "" if difference in LENGTHS else ", and the answer may be wrong"
        yield Note(f"this question is unlike those that the probe knows ({difference}), so its exit is not used{doubt}")

    @abstractmethod
    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        """Follow one sequence by this rule."""


@dataclass(frozen=True, slots=True)
class Readiness(StopRulePolicy):
    """Close at the first thought whose score reaches the probe's certified threshold.

    The score is the probability that thinking on would repair nothing: because the answer stands, or because it is out
    of reach, so that one threshold ends both.
    """

    name: ClassVar[str] = "readiness"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
    trials: bool | None = None
    """Whether to ask for trial answers where free evidence is undecided; None does what saved more on the calibration
    split."""
    threshold: float | None = None  # used in place of the certified one
    fallback: Policy | None = field(default=None, metadata=BOUND)  # what acts on questions that the probe does not know
    drift: BatchDriftTracker | None = field(default=None, repr=False, hash=False, metadata=BOUND)

    def bind(self, context: BindContext) -> Policy:
        if self.rule is not None:
            return self
        rule = load_stop_rule(context.engine, self.probes or context.probes, self.trials)
        threshold = rule.threshold if self.threshold is None else self.threshold
        return replace(self, threshold=threshold, rule=rule, drift=BatchDriftTracker(rule.region))

    @property
    def provenance(self) -> frozenset[str]:
        learned = frozenset() if self.rule is None else self.rule.learned_from
        return learned if self.fallback is None else learned | self.fallback.provenance

    def end_batch(self) -> str | None:
        return None if self.drift is None else self.drift.end_batch()

    def decline(self, view: PolicyView, difference: str) -> Watching:
        yield from StopRulePolicy.decline(self, view, difference)
        if self.fallback is not None:
            yield from self.fallback.watch(view)

    def follow(self, view: PolicyView, rule: StoredRule) -> Watching:
        if self.threshold is None:
            return  # nothing could be certified
        state, tracker = RuleState(rule.rule), FeatureTracker()
        # Only first thoughts are reported: a branch continues behind its own.
        report = None if self.drift is None else self.drift.begin()
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            if not tracker.update(view.thinking):
                continue
            score = state.score_free(tracker.features, view.state(rule.layer))
            if report is not None and len(tracker.thoughts) == 1:
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
    if hopeless > score / 2:
        return f"hopeless: thinking on repairs nothing ({score:.4f}), the answer is out of reach ({hopeless:.2f})"
    return f"ready: thinking on adds nothing ({score:.4f})"


def wait_for_reader(view: PolicyView) -> Wait:
    """The end of a sentence by which a reader's verdict may be there."""
    return Wait(at=view.tokens + 8, boundary="sentence", deadline=view.tokens + 40)


@dataclass(frozen=True, slots=True)
class TextReadiness(Convergence):
    """Close at the first value called the answer whose score reaches the certified threshold of a text probe.

    The probe is learned from recorded outputs of any model (`tersely calibrate LOGS`). Where it also reads hidden
    states, a small reader that reads along gives the score, as the session's verifier; without its verdict, only what
    the rule of `Convergence` supports can close, if the threshold is as lenient as that. The rule also decides, with
    `agree`, about questions that the probe does not know.
    """

    name: ClassVar[str] = "text_readiness"
    probes: str | None = None
    probe: TextProbe | None = field(default=None, repr=False, hash=False, metadata=BOUND)

    @property
    def provenance(self) -> frozenset[str]:
        return frozenset() if self.probe is None else self.probe.learned_from

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError for a missing text probe, CapabilityError without its reader."""
        probe = self.probe or load_text_probe(self.probes or context.probes)
        if probe.reads_states and context.engine is None and not context.trials:
            raise CapabilityError(
                f"the text probe reads hidden states of {probe.base['name']}; let it read along (--reader MODEL)",
                code="missing_reader",
            )
        return replace(self, probe=probe)

    def watch(self, view: PolicyView) -> Watching:
        if self.probe is None:
            raise unbound_error(self)
        difference = self.probe.known.find_difference(view.question) if view.question.strip() else "it is not known"
        if difference is not None:
            yield Note(
                f"this question is unlike those that the text probe knows ({difference}), so it is not certified for "
                "it, and convergence decides"
            )
            yield from Convergence(self.agree, self.stride, self.growth).watch(view)
        elif self.probe.certificate.threshold is None:
            yield Note(f"the text probe {self.probe.certificate}")
        else:
            yield from Convergence.watch(self, view)

    @property
    def reads_all(self) -> bool:
        return self.probe is not None and self.probe.reads_states

    def judge(self, view: PolicyView, claim: Claim, finality: Finality) -> Generator[Action, Any, str | None]:
        probe, called = self.probe, finality is Finality.ANSWERS
        assert probe is not None and probe.certificate.threshold is not None
        features, support = claim.features(view.tokens, finality), _RULE.find_support(claim) if called else None
        threshold = probe.certificate.threshold
        probability: float | None
        if probe.reads_states and support is not None and threshold <= RULE:  # whatever the verdict would be
            return f"the answer {claim.answer} is final ({support} it)"
        if probe.reads_states:
            asked = AnswerFinal(view.question, view.thinking.text, features, probe, id(view))
            future: VerdictFuture = yield AskVerifier(asked)
            while not future.done():
                yield wait_for_reader(view)
            probability = get_verdict(future)
        else:
            probability = float(probe.probabilities([features])[0])
        if probability is None and support is None:
            return None
        if combine(probability or 0.0, support is not None) < threshold:
            return None
        sure = "no verdict" if probability is None else f"{probability:.3f} sure"
        return f"the answer {claim.answer} is final ({sure}{f', {support} it' if support else ''})"


@dataclass(frozen=True, slots=True)
class AutoExit(Policy):
    """Use `Readiness` where the model has a probe and its engine shows what it reads, else `Convergence`.

    Between them comes `TextReadiness`, where the folder has a text probe. `Convergence` also decides about questions
    that the probe does not know. The trace names the one that acts.
    """

    name: ClassVar[str] = "auto_exit"
    probes: str | None = None
    agree: int = 2  # independent derivations that end the thinking without a probe

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError for a missing folder, ArtifactError for another model's probe."""
        probes = self.probes or context.probes
        if probes is not None and not any(Path(probes).glob("*/probe.json")):
            raise ProbeError(f"{probes} has no probes; accepted: a folder of `tersely calibrate`")
        rule: Policy = Convergence(self.agree)
        if probes is not None and (context.engine is None or (Path(probes) / TEXT).is_dir()):
            rule = TextReadiness(self.agree, probes=probes).bind(context)
        try:
            return Readiness(probes, fallback=rule).bind(context)
        except (ProbeError, CapabilityError):
            return rule

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: `bind` returns the policy that acts."""
        raise unbound_error(self)
