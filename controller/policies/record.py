"""Recording what the probes learn from, at the end of each thought; acts on nothing but its own trial answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...probes.features import features
from ...probes.records import UNKNOWN
from ..thought_features import FeatureTracker
from ..trial_answers import TrialAnswer
from ..types import Signals, State
from .base import PolicyView, Trial, Wait, Watching


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """The end of one thought.

    end: thinking tokens so far. stated: the latest answer stated. states: hidden states by layer.
    """

    end: int
    features: State
    stated: str | None
    states: dict[int, State]
    trial: TrialAnswer | None


@dataclass(frozen=True, slots=True)
class PassiveRecorder:
    """Tell `begin` that a row begins; what it returns is told each boundary of that row.

    layers: whose hidden states are kept. trials: whether trial answers are asked for.
    """

    name: ClassVar[str] = "record"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden", "crop"})
    begin: Callable[[], Callable[[ThoughtRecord], None]] = field(repr=False)
    layers: tuple[int, ...] = (-1,)
    trials: bool = True

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        tell, readings = self.begin(), FeatureTracker()
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
            if not (thoughts := readings.update(view.thinking)):
                continue
            end, values, stated = view.tokens, features(thoughts), readings.stated
            states = {layer: view.state(layer) for layer in self.layers}
            if self.trials:
                view = yield Trial(drawn=True)
            tell(ThoughtRecord(end, values, stated, states, view.reply if self.trials else None))


@dataclass(frozen=True, slots=True)
class RecordThoughts(PassiveRecorder):
    """`PassiveRecorder` without trial answers, which not every engine can take back."""

    needs: ClassVar[frozenset[str]] = frozenset({"signals", "hidden"})
    trials: bool = False


class AnswerIds:
    """Numbers the different answers of one rollout."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, answer: str | None) -> int:
        """The number of an answer; -1 for none."""
        return UNKNOWN if answer is None else self._known.setdefault(answer, len(self._known))


def mean_entropy(signals: Sequence[Signals | None]) -> float:
    """Mean entropy of the sampled tokens, in nats (DiffAdapt, arXiv 2510.19669); NaN if there are none."""
    values = [s.entropy for s in signals if s is not None]
    return sum(values) / len(values) if values else math.nan
