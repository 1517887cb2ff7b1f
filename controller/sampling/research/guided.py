"""Guided decoding by a process reward model: of the candidates for each step, the one of the highest value goes on.

From Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards (arXiv 2510.01167). The reward
model is a probe on the hidden state at the end of a thought, which `tersely train prm` learns from how completions of
that thought end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from ....errors import OptionError, check_known
from ....probes.artifact import Artifact, ArtifactError, load, require_fingerprint
from ....probes.rule import HOPEFUL, HOPELESS, READY
from ...probe_registry import ProbeError
from ...types import Capability, Engine, State
from ..rules import ROOT, Branch, VoteState, tally

MOST_STEPS = 20  # of the authors' code, as 5 candidates are, the default `k` of `tersely.sample`
OBJECTIVES: Mapping[str, tuple[str, ...]] = {"accuracy": (READY, HOPEFUL), "brevity": (READY,)}
"""The outcomes that have each objective: right soon (ready) or later (hopeful), in place of wrong (hopeless)."""


@dataclass(frozen=True, slots=True)
class RewardModel:
    """The chances of outcomes by the hidden state at the end of a thought, as a readiness probe without features."""

    probe: Artifact

    def value(self, state: State, weights: Mapping[str, float]) -> float:
        """The weighted sum, over objectives, of the chance that a completion has it."""
        found: list[float] = self.probe.network.proba(state[None])[0].tolist()
        chances = dict(zip(self.probe.classes, found, strict=True))
        return sum(weight * sum(chances.get(one, 0.0) for one in OBJECTIVES[name]) for name, weight in weights.items())


def load_reward_model(folder: str | Path, engine: Engine) -> RewardModel:
    """Read what `tersely train prm` wrote; raises ArtifactError for another model or another probe."""
    path = Path(folder) / "readiness"
    probe = load(path, fingerprint=require_fingerprint(engine.fingerprint(), path), kind="readiness")
    if probe.features or HOPELESS not in probe.classes:
        raise ArtifactError(f"{path} has no process reward model; accepted: a folder of `tersely train prm`")
    return RewardModel(probe)


@dataclass(frozen=True, slots=True)
class Guided:
    """Guided decoding (arXiv 2510.01167): k candidates for each step, of which the best by `weights` goes on.

    A step has `thoughts` thoughts. A candidate that closes its thinking goes on to its answer, which counts if no other
    is worth more. After `most_steps` the best one thinks on alone. Different: a candidate reads again what came before
    its step, which counts as `recomputed`; with the authors its cache goes on.
    """

    name: ClassVar[str] = "guided"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.HIDDEN_STATES})
    probes: str | None = None  # folder of `tersely train prm`
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    thoughts: int = 1
    most_steps: int = MOST_STEPS
    reward: RewardModel | None = None

    def __post_init__(self) -> None:
        check_known("objective", self.weights, OBJECTIVES)
        numbers = [one for one in self.weights.values() if isinstance(one, (int, float)) and math.isfinite(one)]
        if self.thoughts < 1 or self.most_steps < 1 or not numbers or len(numbers) < len(self.weights):
            raise OptionError(
                f"thoughts are {self.thoughts}, most_steps {self.most_steps} and weights {dict(self.weights)}; "
                "accepted: thoughts and most_steps of 1 or more, and a finite weight for at least one objective"
            )

    def bind(self, engine: Engine) -> Self:
        """See `ModelRule.bind`."""
        if self.reward is None and self.probes is None:
            raise ProbeError(
                f"rule 'guided' needs a process reward model of {engine.name!r}; make one with `tersely train prm`, "
                "and pass its folder: Guided(probes=...)"
            )
        return self if self.reward else replace(self, reward=load_reward_model(str(self.probes), engine))

    def start_vote(self, k: int) -> VoteState:
        return _GuidedVote(k, self)


class _GuidedVote(VoteState):
    def __init__(self, k: int, rule: Guided) -> None:
        super().__init__(k, early=False)
        assert rule.reward is not None  # bound
        self.rule, self.reward, self.layers = rule, rule.reward, (rule.reward.probe.layer,)
        self._candidates = range(0)
        self._steps = 0
        self._left: dict[int, int] = {}  # thoughts until a candidate's step ends
        self._ends: dict[int, tuple[float, int]] = {}  # its value, and the thinking tokens at which it was found
        self._answered: set[int] = set()

    def start_samples(self) -> list[Branch]:
        best = self.find_best()
        if best in self._answered:
            self._decide(f"candidate {best} of step {self._steps} has the highest value, and an answer")
            return []
        self._steps += 1
        guided = self._steps <= self.rule.most_steps
        branch = ROOT if best is None else Branch(best, self._ends[best][1])
        started = self._start([branch] * (self.k if guided else 1))
        self._candidates = range(self.started - len(started), self.started)
        self._left = dict.fromkeys(self._candidates, self.rule.thoughts) if guided else {}
        return started

    def find_best(self) -> int | None:
        """The candidate of the latest step with the highest value, of equal ones the first; None before the first."""
        return max(self._candidates, key=lambda sample: self._ends.get(sample, (-math.inf, 0))[0], default=None)

    def end_thought(self, sample: int, at: int, state: Callable[[int], State]) -> None:
        self._ends[sample] = self.reward.value(state(self.layers[0]), self.rule.weights), at
        if sample in self._left:
            self._left[sample] -= 1
            if not self._left[sample]:
                self._stop([sample], f"its step {self._steps} has a value of {self._ends[sample][0]:.3f}")

    def close_thinking(self, sample: int) -> None:
        self._left.pop(sample, None)  # it goes on to its answer

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        super().finish(sample, answer, thoughts)
        if answer is not None:
            self._answered.add(sample)

    def tally(self) -> dict[str, float]:
        return tally(vote for vote in self.votes if vote.sample == self.find_best())


@dataclass(frozen=True, slots=True)
class Forks:
    """One sample, and `width` completions from each of `places` ends of its thoughts, evenly spread: Monte Carlo."""

    name: ClassVar[str] = "forks"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.HIDDEN_STATES})
    found: list[dict[int, State]]  # gets, for each prompt in order, the states at its places by their thinking tokens
    layer: int = -1
    places: int = 4
    width: int = 4

    def start_vote(self, k: int) -> VoteState:
        self.found.append({})
        return _ForkVote(k, self, self.found[-1])


class _ForkVote(VoteState):
    def __init__(self, k: int, rule: Forks, places: dict[int, State]) -> None:
        super().__init__(k, early=False)
        self.rule, self.layers, self.places = rule, (rule.layer,), places
        self._ends: dict[int, State] = {}

    def start_samples(self) -> list[Branch]:
        if not self.started:
            return self._start([ROOT])
        ends, count = list(self._ends), self.rule.places
        if self.started == 1 and ends:
            self.places.update({at: self._ends[at] for at in (ends[i * len(ends) // count] for i in range(count))})
            return self._start([Branch(0, at) for at in self.places for _ in range(self.rule.width)])
        return []

    def end_thought(self, sample: int, at: int, state: Callable[[int], State]) -> None:
        if not sample:
            self._ends[at] = state(self.rule.layer)
