"""Record what the probes learn from, at the end of each thought; acts on nothing but its own trial answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...probes.features import features
from ...probes.records import UNKNOWN
from ..thought_features import FeatureTracker
from ..types import Capability, Signals, State
from .base import Policy, PolicyView, Trial, TrialAnswer, Wait, Watching


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """The end of one thought.

    Attributes:
        end: thinking tokens so far.
        stated: the latest stated answer.
        states: hidden states by layer.
    """

    end: int
    features: State
    stated: str | None
    states: dict[int, State]
    trial: TrialAnswer | None


@dataclass(frozen=True, slots=True)
class PassiveRecorder(Policy):
    """Report the end of each thought, with a trial answer at each.

    Attributes:
        begin: called when a sequence starts; what it returns is called with each record of that sequence.
        layers: hidden layers to keep.
    """

    name: ClassVar[str] = "record"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.KV_ROLLBACK}
    )
    begin: Callable[[], Callable[[ThoughtRecord], None]] = field(repr=False)
    layers: tuple[int, ...] = (-1,)
    trials: bool = True

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """See `Policy`."""
        return self.layers

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        report, tracker = self.begin(), FeatureTracker()
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            if not (thoughts := tracker.update(view.thinking)):
                continue
            end, values, stated = view.tokens, features(thoughts), tracker.stated
            states = {layer: view.state(layer) for layer in self.layers}
            trial = (yield Trial(sampled=True)) if self.trials else None
            report(ThoughtRecord(end, values, stated, states, trial))


@dataclass(frozen=True, slots=True)
class RecordThoughts(PassiveRecorder):
    """`PassiveRecorder` without trial answers, which not every engine can take back."""

    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
    trials: bool = False


class AnswerIds:
    """Numbers the different answers of one rollout."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def get(self, answer: str | None) -> int:
        """The number of an answer; -1 for none."""
        return UNKNOWN if answer is None else self._ids.setdefault(answer, len(self._ids))


def mean_entropy(signals: Sequence[Signals | None]) -> float:
    """Mean entropy of the sampled tokens, in nats (DiffAdapt, arXiv 2510.19669); NaN if there are none."""
    values = [s.entropy for s in signals if s is not None]
    return sum(values) / len(values) if values else math.nan
