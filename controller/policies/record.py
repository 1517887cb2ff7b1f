"""Record what the probes learn from, at the end of each thought; acts on nothing but its own trial answers.

Live traffic, recorded in the format of a collection, has no labels: a boundary's outcome is whether the answer stated
by then is the final one. Its prompts are kept as hashes only, since they are other people's text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...probes.fingerprint import question_hash
from ...probes.records import UNKNOWN, Array, RecordRows, RecordStore
from ...probes.rule import FEATURES
from ..budgets import TIERS
from ..prompts import as_messages
from ..text.answers import extract_answer, normalize_answer
from ..text.markers import Markers
from ..text.tokenizer_adapter import TokenizerAdapter
from ..trace import GenerationResult
from ..types import Capability, Engine, Prompt, Signals, State
from .base import Policy, PolicyView, Trial, TrialAnswer, Wait, Watching
from .readiness import FeatureTracker


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """The end of one thought."""

    end: int  # thinking tokens so far
    features: State
    stated: str | None
    states: dict[int, State]
    trial: TrialAnswer | None


@dataclass(frozen=True, slots=True)
class PassiveRecorder(Policy):
    """Report the end of each thought, with a trial answer at each."""

    name: ClassVar[str] = "record"
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.KV_ROLLBACK}
    )
    begin: Callable[[], Callable[[ThoughtRecord], None]] = field(repr=False)
    """Called when a sequence starts; what it returns is called with each record of that sequence."""
    layers: tuple[int, ...] = (-1,)
    trials: bool = True

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return self.layers

    def watch(self, view: PolicyView) -> Watching:
        report, tracker = self.begin(), FeatureTracker()
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            if not tracker.update(view.thinking):
                continue
            end, values, stated = view.tokens, tracker.features, tracker.stated
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


_LAYERS = (-1,)


class LiveRecorder:
    """Records the batches of a session; `policy` watches one batch, `keep` writes it as one part."""

    def __init__(self, folder: Path, engine: Engine, codec: TokenizerAdapter, markers: Markers) -> None:
        closing = len(codec.encode(markers.close + markers.close_suffix + markers.answer_prefix))
        plan = {
            "model": engine.name,
            "fingerprint": engine.fingerprint(),
            "task": "live",
            "split": "live",
            "seed": 0,
            "tiers": tuple(TIERS),
            "rollouts": 1,
            "layers": _LAYERS,
            "features": FEATURES,
            "closing": closing,
        }
        self.store = RecordStore(folder, plan)
        self._rows: list[list[ThoughtRecord]] = []

    def policy(self) -> RecordThoughts:
        """The policy that watches a batch; it never acts."""
        self._rows = []

        def begin() -> Callable[[ThoughtRecord], None]:
            self._rows.append([])
            return self._rows[-1].append

        return RecordThoughts(begin, _LAYERS)

    def keep(self, prompts: Sequence[Prompt], done: Sequence[GenerationResult], watched: Sequence[bool]) -> None:
        """Write what was seen of a batch; watched: which of its rows had a controller."""
        rollouts, boundaries = RecordRows("rollouts"), RecordRows("boundaries")
        texts = [str(as_messages(prompt)[-1]["content"]) for prompt in prompts]
        states: list[State] = []
        seen = iter(self._rows)
        for index, (one, has_rows) in enumerate(zip(done, watched, strict=True)):
            ends = next(seen) if has_rows else []
            final, numbers = normalize_answer(extract_answer(one.answer)), AnswerIds()
            tier = tuple(TIERS).index(one.tier)
            spent = one.usage.thinking, one.usage.answer
            rollouts.add(index, tier, 0, UNKNOWN, *spent, mean_entropy(one.signals), one.finish_reason == "stop")
            for end in ends:
                same = int(end.stated == final)
                boundaries.add(index, end.end, end.features, UNKNOWN, same, numbers.get(end.stated), UNKNOWN, 0.0, 0)
                states.append(end.states[_LAYERS[0]])
        layer = _LAYERS[0]
        width = len(states[0]) if states else 0
        if not width:
            return  # nothing was thought
        columns: dict[str, Array] = {
            "questions.level": np.full(len(texts), UNKNOWN, np.int64),
            "questions.words": np.array([len(text.split()) for text in texts], np.int32),
            # Difficulty is learnt from questions with answers, and where a tier was not chosen yet.
            f"questions.state.{layer}": np.full((len(texts), width), np.nan, np.float32),
            **rollouts.columns(),
            **boundaries.columns(),
            f"boundaries.state.{layer}": np.array(states, np.float32),
        }
        hashes = [question_hash(text) for text in texts]
        kept = {"hash": hashes, "problem": [""] * len(texts), "kind": [""] * len(texts)}
        self.store.put(self.store.parts, columns, kept)
