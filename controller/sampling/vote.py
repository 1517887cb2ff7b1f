"""The vote on one prompt while its samples run, which decides which of them stop; knows neither engine nor text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

from ..text.answers import normalize_answer, parse_value
from ..trace import GenerationResult
from ..types import Capability, Prompt

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a sample starts: at the prompt, or after the first `at` thinking tokens of a finished sample."""

    parent: int | None = None
    at: int = 0
    effort: str | None = None
    """Of a sample that starts at the prompt; None is the caller's."""


ROOT = Branch()


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer of one sample; an empty answer does not count."""

    sample: int
    answer: str
    weight: float = 1.0


def tally(votes: Iterable[Vote]) -> dict[str, float]:
    """The weight of each answer, by its first normalized spelling, heaviest first; of equally heavy ones the first.

    Answers are the same if their numbers (fractions, per cent) are, or else their normalized spellings.
    """
    names: dict[tuple[Fraction, bool] | str, str] = {}
    weights: dict[str, float] = {}
    for vote in votes:
        if vote.answer:
            spelling = normalize_answer(vote.answer)
            value = parse_value(spelling)
            meaning = spelling if value is None else (value, "%" in spelling)
            name = names.setdefault(meaning, spelling)
            weights[name] = weights.get(name, 0.0) + vote.weight
    return dict(sorted(weights.items(), key=lambda item: -item[1]))


class VoteState:
    """A vote of `k` samples, numbered in the order they start; `early` stops it once the leader cannot be overtaken."""

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

    def close_thinking(self, sample: int) -> None:
        """Process that a sample has finished thinking."""

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        """Process the end of a sample, with an empty answer if it gave none, and None if it was stopped.

        `thoughts` are the end in thinking tokens and the mean confidence of each of its own thoughts.
        """
        self.running.discard(sample)
        if answer is not None:
            self.votes.append(Vote(sample, answer, self.weight(sample)))
        if not self.decision:
            self._settle()

    def judge(self, sample: int, prompt: Prompt, result: GenerationResult) -> None:
        """Look at the result of a finished sample."""

    # -- the count

    def weight(self, sample: int) -> float:
        """The weight of a sample's vote, at most 1 where the vote is settled early."""
        return 1.0

    def remaining(self) -> float:
        """The most weight that can still be cast."""
        return self.k - self.started + len(self.running - self.stopped.keys())

    def tally(self) -> dict[str, float]:
        """See `vote.tally`; ties go to the sample that started first."""
        return tally(sorted(self.votes, key=lambda vote: vote.sample))

    def explain(self) -> str:
        """Why the answer is what it is."""
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
