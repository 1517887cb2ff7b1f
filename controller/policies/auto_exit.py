"""The exit of `balanced`: the best that a model has of a readiness probe, a text probe and the rule of convergence."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ...errors import CapabilityError
from ...probes.text_probe import TEXT, TextProbe, combine
from ..probe_registry import ProbeError, load_text_probe
from ..text.answers import Finality
from ..text.evidence import Claim
from ..types import BindContext
from ..verification import AnswerFinal, VerdictFuture, get_verdict
from .base import BOUND, Action, AskVerifier, Note, Policy, PolicyView, Wait, Watching, unbound_error
from .exits import Convergence
from .readiness import Readiness

_POLL_TOKENS = 8


@dataclass(frozen=True, slots=True)
class TextReadiness(Convergence):
    """Close at the first value called the answer whose score reaches the certified threshold of a text probe.

    The probe is learned from recorded outputs of any model (`tersely calibrate LOGS`). Where it also reads hidden
    states, a small reader that reads along gives the score, as the session's verifier; without its verdict, and on
    questions that the probe does not know, the rule of `Convergence` decides.
    """

    name: ClassVar[str] = "text_readiness"
    probes: str | None = None
    probe: TextProbe | None = field(default=None, repr=False, hash=False, metadata=BOUND)

    @property
    def provenance(self) -> frozenset[str]:
        return frozenset() if self.probe is None else self.probe.learned_from

    def bind(self, context: BindContext) -> Policy:
        """See `Policy.bind`; raises ProbeError where there is no text probe, CapabilityError without its reader."""
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
        if (difference := self.probe.known.find_difference(view.question)) is not None:
            yield Note(
                f"this question is unlike those that the text probe knows ({difference}), so it is not certified for "
                "it, and convergence decides"
            )
            yield from Convergence(self.agree, self.stride, self.growth).watch(view)
        elif self.probe.certificate.threshold is not None:
            yield from Convergence.watch(self, view)

    @property
    def reads_all(self) -> bool:
        return self.probe is not None and self.probe.reads_states

    def judge(self, view: PolicyView, claim: Claim, finality: Finality) -> Generator[Action, Any, str | None]:
        probe, called = self.probe, finality is Finality.ANSWERS
        assert probe is not None and probe.certificate.threshold is not None
        features, support = claim.features(view.tokens, finality), self.find_support(claim) if called else None
        if probe.reads_states:
            asked = AnswerFinal(view.question, view.thinking.text, features, probe)
            future: VerdictFuture = yield AskVerifier(asked)
            while not future.done():
                yield Wait(at=view.tokens + _POLL_TOKENS, boundary="token")
            probability = get_verdict(future) or 0.0
        else:
            probability = float(probe.probabilities([features])[0])
        if combine(probability, support is not None) < probe.certificate.threshold:
            return None
        return f"the answer {claim.answer} is final ({probability:.3f} sure{f', {support} it' if support else ''})"


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
        rule: Policy = Convergence(self.agree)
        if probes is not None and (Path(probes) / TEXT).is_dir():
            rule = TextReadiness(self.agree, probes=probes).bind(context)
        if context.engine is None:
            return rule
        try:
            return Readiness(probes, fallback=rule).bind(context)
        except (ProbeError, CapabilityError):
            if probes is not None and not any(Path(probes).glob("*/probe.json")):
                raise
            return rule

    def watch(self, view: PolicyView) -> Watching:
        """Refuse: `bind` returns the policy that acts."""
        raise unbound_error(self)
