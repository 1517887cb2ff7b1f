"""Votes on one prompt while its samples run, which decide which of them stop, and the rules that start them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol, runtime_checkable

from ...errors import OptionError
from ..text.answers import normalize_answer, parse_value
from ..trace import GenerationResult
from ..types import Capability, Engine, Prompt, State

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a sample starts: at the prompt, or after the first `at` thinking tokens of a finished sample."""

    parent: int | None = None
    at: int = 0
    effort: str | None = None  # of a sample that starts at the prompt; None is the caller's


ROOT = Branch()


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer of one sample; an empty answer does not count."""

    sample: int
    answer: str
    weight: float = 1.0


Meaning = tuple[Fraction, bool] | str


def find_meaning(answer: str) -> Meaning:
    """What an answer says: its number (fractions, per cent) if it is one, or else its normalized spelling."""
    spelling = normalize_answer(answer)
    value = parse_value(spelling)
    return spelling if value is None else (value, "%" in spelling)


def tally(votes: Iterable[Vote]) -> dict[str, float]:
    """The weight of each answer, by its first normalized spelling, heaviest first; of equally heavy ones the first."""
    names: dict[Meaning, str] = {}
    weights: dict[str, float] = {}
    for vote in votes:
        if vote.answer:
            name = names.setdefault(find_meaning(vote.answer), normalize_answer(vote.answer))
            weights[name] = weights.get(name, 0.0) + vote.weight
    return dict(sorted(weights.items(), key=lambda item: -item[1]))


class VoteState:
    """A vote of `k` samples, numbered in the order they start; `early` stops it once the leader cannot be overtaken."""

    layers: tuple[int, ...] = ()  # hidden layers that `end_thought` reads

    def __init__(self, k: int, early: bool = True) -> None:
        self.k, self.early = k, early
        self.started = 0
        self.running: set[int] = set()  # have started and not finished
        self.votes: list[Vote] = []  # in the order in which the samples finished
        self.stopped: dict[int, str] = {}  # samples that stop at their next token, with the reasons
        self.decision = ""  # why no more samples are needed

    # -- called by the run, in this order

    def start_samples(self) -> list[Branch]:
        """Start samples once all earlier ones have finished; return where each starts, nothing if the vote is over."""
        return self._start([ROOT] * (self.k - self.started))

    def add_token(self, sample: int, confidence: float) -> None:
        """Process a sampled token; `confidence` is that of its signals, nan where the rule does not require it."""

    def end_thought(self, sample: int, at: int, state: Callable[[int], State]) -> None:
        """Process the end of a thought after `at` thinking tokens, or of all, if the vote has `layers`.

        `state` reads the hidden state of a layer that the latest token was sampled from.
        """

    def close_thinking(self, sample: int) -> None:
        """Process that a sample has finished thinking."""

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        """Process the end of a sample, with an empty answer if it gave none, and None if it was stopped.

        `thoughts` are the end in thinking tokens and the mean confidence of each of its thoughts, also of those that
        a branch has from its parent.
        """
        self.running.discard(sample)
        if answer is not None:
            self.votes.append(Vote(sample, answer, self.weight(sample)))
        if not self.decision:
            self._settle()

    def judge(self, sample: int, prompt: Prompt, result: GenerationResult) -> None:
        """Look at the result of a finished sample."""

    def weight(self, sample: int) -> float:
        """The weight of a sample's vote, at most 1 where the vote is settled early."""
        return 1.0

    def remaining(self) -> float:
        """The most weight that can still be cast."""
        return self.k - self.started + len(self.running - self.stopped.keys())

    def tally(self) -> dict[str, float]:
        return tally(sorted(self.votes, key=lambda vote: vote.sample))

    def explain(self) -> str:
        weights = self.tally()
        if self.decision or not weights:
            return self.decision or "no sample gave an answer"
        leader = next(iter(weights))
        return f"{leader} has {weights[leader]:.3g} of {sum(weights.values()):.3g} votes"

    # -- for subclasses

    def _start(self, branches: list[Branch]) -> list[Branch]:
        if self.decision:
            return []
        self.running.update(range(self.started, self.started + len(branches)))
        self.started += len(branches)
        return branches

    def _settle(self) -> None:
        """Decide if no vote to come can change the answer."""
        remaining, weights = self.remaining(), self.tally()
        if not (self.early and remaining and weights):
            return
        first, second = [*weights.values(), 0.0][:2]
        if first - second > remaining + _ROUNDING:
            leader = next(iter(weights))
            self._decide(f"{leader} leads {first:.3g} to {second:.3g} and at most {remaining:g} can follow")

    def _decide(self, reason: str) -> None:
        self.decision = reason
        self._stop(self.running, reason)

    def _stop(self, samples: Iterable[int], reason: str) -> None:
        for sample in sorted(samples):
            self.stopped.setdefault(sample, reason)


class AggregationRule(Protocol):
    """How samples become an answer. Holds settings only; what happens to one prompt lives in its `VoteState`."""

    name: ClassVar[str]

    @property
    def requires(self) -> frozenset[Capability]:
        """What the engine must report of each token."""

    def start_vote(self, k: int) -> VoteState:
        """Start the vote on one prompt; raises OptionError if the settings do not fit this many samples."""


@runtime_checkable
class ModelRule(AggregationRule, Protocol):
    """A rule that reads what was learned for a model."""

    def bind(self, engine: Engine) -> AggregationRule:
        """The same rule for this model; raises ProbeError or ArtifactError if nothing was learned for it."""


@dataclass(frozen=True, slots=True)
class Majority:
    """Majority vote (self-consistency, arXiv 2203.11171), stopped once the leader cannot be overtaken.

    Of the methods without a verifier the robust one for reasoning models (Think Deep, Think Fast, arXiv 2504.14047). A
    `lazy` vote starts only as many samples as could settle it: the fewest tokens, but one batch after another.
    """

    name: ClassVar[str] = "majority"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    early: bool = True  # stop early, which never changes the answer
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.lazy and not self.early:
            raise OptionError("a lazy vote stops early; accepted: early=True with lazy=True")

    def start_vote(self, k: int) -> VoteState:
        return _MajorityVote(k, self)


class _MajorityVote(VoteState):
    def __init__(self, k: int, rule: Majority) -> None:
        super().__init__(k, rule.early)
        self.rule = rule

    def start_samples(self) -> list[Branch]:
        count = self.k - self.started
        if self.rule.lazy and count:
            first, second = [*self.tally().values(), 0.0, 0.0][:2]
            # With this many votes for the leader, the other samples could not overtake it.
            count = min(count, math.floor((count - (first - second)) / 2) + 1)
        return self._start([ROOT] * count)


@dataclass(frozen=True, slots=True)
class ShortMofK:
    """short-m@k (arXiv 2505.17813): the first `m` samples to finish thinking vote, the others are stopped then.

    Ties go to the first of them, and a settled vote stops the samples that are still running.
    """

    name: ClassVar[str] = "short"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    m: int = 3

    def start_vote(self, k: int) -> VoteState:
        if not 1 <= self.m <= k:
            raise OptionError(f"m is {self.m} of {k} samples; accepted: 1 to {k}")
        return _FirstVote(k, self.m)


class _FirstVote(VoteState):
    """Only the first m samples to finish thinking vote."""

    def __init__(self, k: int, m: int) -> None:
        super().__init__(k)
        self.m = m
        self._first: list[int] = []

    def close_thinking(self, sample: int) -> None:
        if len(self._first) == self.m:
            return
        self._first.append(sample)
        if len(self._first) == self.m:
            self._stop(self.running.difference(self._first), f"{self.m} others have finished thinking")

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        super().finish(sample, answer if sample in self._first else None, thoughts)

    def remaining(self) -> float:
        return self.m - len(self.votes)

    def tally(self) -> dict[str, float]:
        """See `VoteState.tally`; ties go to the sample that finished thinking first."""
        return tally(sorted(self.votes, key=lambda vote: self._first.index(vote.sample)))


@dataclass(frozen=True, slots=True)
class VoteFirst:
    """Samples without thinking, and only where they disagree samples that think, whose majority counts then.

    Of k samples the `first` do not think. Their answer stands if all give the same one. A rule of practice without a
    paper that we know of.
    """

    name: ClassVar[str] = "vote-first"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    first: int = 3

    def start_vote(self, k: int) -> VoteState:
        if not 2 <= self.first < k:
            raise OptionError(f"first is {self.first} of {k} samples; accepted: 2 to {k - 1}")
        return _VoteFirst(k, self.first)


class _VoteFirst(VoteState):
    def __init__(self, k: int, first: int) -> None:
        super().__init__(k)
        self.first = first

    def start_samples(self) -> list[Branch]:
        return self._start([Branch(effort="none")] * self.first) if not self.started else super().start_samples()

    def tally(self) -> dict[str, float]:
        thought = [vote for vote in self.votes if vote.sample >= self.first and vote.answer]
        return tally(sorted(thought or self.votes, key=lambda vote: vote.sample))

    def _settle(self) -> None:
        if self.started > self.first:
            super()._settle()
        elif not self.running and len(votes := self.tally()) == 1 and all(vote.answer for vote in self.votes):
            self._decide(f"all {self.first} samples without thinking say {next(iter(votes))}")
