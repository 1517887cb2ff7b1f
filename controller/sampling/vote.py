"""The vote on one prompt while its samples go on: is told what happens, says who stops. Knows no engine and no text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

from ..text.answers import normalize_answer, parse_value

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a sample begins: at the prompt, or after the first `at` thinking tokens of a sample that has ended."""

    parent: int | None = None
    at: int = 0


ROOT = Branch()


@dataclass(frozen=True, slots=True)
class Vote:
    """What one sample ended with; an empty answer is no vote."""

    sample: int
    answer: str
    weight: float = 1.0


def tally(ballots: Iterable[Vote]) -> dict[str, float]:
    """The weight of each answer, heaviest first; of equally heavy ones that which came first.

    Answers are one where their numbers (fractions, per cent) or else their normalised spellings are; the name is the
    spelling that came first, normalised.
    """
    names: dict[tuple[Fraction, bool] | str, str] = {}
    votes: dict[str, float] = {}
    for ballot in ballots:
        if ballot.answer:
            spelled = normalize_answer(ballot.answer)
            name = names.setdefault(_meaning(spelled), spelled)
            votes[name] = votes.get(name, 0.0) + ballot.weight
    return dict(sorted(votes.items(), key=lambda vote: -vote[1]))


def _meaning(spelled: str) -> tuple[Fraction, bool] | str:
    """What equal answers have in common."""
    value = parse_value(spelled)
    return spelled if value is None else (value, "%" in spelled)


class VoteState:
    """A vote of `k` samples, numbered as they begin, in which all that end have a say.

    early: stop once the leading answer cannot be overtaken. stopped: why, by sample, in the order of the decisions;
    a sample is to stop at its next token. decided: why no more is needed, empty until then.
    """

    def __init__(self, k: int, early: bool = True) -> None:
        self.k, self.early = k, early
        self.begun = 0
        self.live: set[int] = set()
        self.ballots: list[Vote] = []
        self.stopped: dict[int, str] = {}
        self.decided = ""

    def draw(self) -> list[Branch]:
        """Which samples begin now, once all before have ended; none when the poll is over."""
        return self._begin([ROOT] * (self.k - self.begun))

    def read(self, sample: int, confidence: float) -> None:
        """Hear of a token that a sample has put out; confidence: see `Meter`."""

    def closed(self, sample: int) -> None:
        """Hear that a sample has finished thinking."""

    def ended(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        """Hear what a sample ended with; the answer is empty if it gave none, and None if it was stopped.

        thoughts: where each of its own ends, in thinking tokens, and its mean confidence.
        """
        self.live.discard(sample)
        if answer is not None:
            self.ballots.append(Vote(sample, answer, self.weight(sample)))
        if not self.decided:
            self._settle()

    def weight(self, sample: int) -> float:
        """What the vote of a sample weighs, at most 1."""
        return 1.0

    def left(self) -> float:
        """The most that is still to be cast."""
        return self.k - self.begun + len(self.live - self.stopped.keys())

    def votes(self) -> dict[str, float]:
        """See `count`; ties go to the sample that began first."""
        return tally(sorted(self.ballots, key=lambda ballot: ballot.sample))

    def verdict(self) -> str:
        """Why the answer is what it is."""
        votes = self.votes()
        if self.decided or not votes:
            return self.decided or "no sample gave an answer"
        first = next(iter(votes))
        return f"{first} has {votes[first]:.3g} of {sum(votes.values()):.3g} votes"

    def _begin(self, starts: list[Branch]) -> list[Branch]:
        if self.decided:
            return []
        self.live.update(range(self.begun, self.begun + len(starts)))
        self.begun += len(starts)
        return starts

    def _settle(self) -> None:
        """Decide if nothing that is to come can change the answer."""
        left, votes = self.left(), self.votes()
        if not (self.early and left and votes):
            return
        first, second = [*votes.values(), 0.0][:2]
        if first - second > left + _ROUNDING:
            leader = next(iter(votes))
            self._decide(f"{leader} leads {first:.3g} to {second:.3g} and at most {left:g} can follow")

    def _decide(self, reason: str) -> None:
        self.decided = reason
        self._stop(self.live, reason)

    def _stop(self, samples: Iterable[int], reason: str) -> None:
        for sample in sorted(samples):
            self.stopped.setdefault(sample, reason)


class AggregationRule(Protocol):
    """How samples become an answer. Holds settings only; what happens to one prompt lives in its poll.

    signals: whether its polls read confidences.
    """

    name: ClassVar[str]

    @property
    def signals(self) -> bool:
        """See above."""
        ...

    def poll(self, k: int) -> VoteState:
        """Open the poll of one prompt; raises OptionError where the settings do not fit so many samples."""
        ...
