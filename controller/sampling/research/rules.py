"""Rules of papers: trees of samples, and sampling again until a verifier that errs passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ....errors import OptionError
from ...trace import GenerationResult
from ...types import Prompt
from ..vote import ROOT, Branch, VoteState, tally

MAX_ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class Tree:
    """Majority vote of a tree: `roots` samples first, then `width` more from one fork after another.

    A fork lies before the thought with the lowest mean confidence (see `ConfidenceTracker`) among those where no branch
    starts yet. A branch reads what came before it once more (`recomputed`), so its vote is not independent.
    """

    name: ClassVar[str] = "tree"
    signals: ClassVar[bool] = True
    roots: int = 2
    width: int = 2
    most_tokens: int | None = None  # sampled in all; then every sample is stopped

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`."""
        if not 1 <= self.roots <= k or self.width < 1:
            raise OptionError(
                f"roots are {self.roots} of {k} samples, width {self.width}; accepted: 1 to {k}, 1 or more"
            )
        return _TreeVote(k, self)


class _TreeVote(VoteState):
    def __init__(self, k: int, rule: Tree) -> None:
        super().__init__(k)
        self.rule = rule
        self._tokens = 0
        self._forks: list[tuple[float, int, int]] = []  # confidence of the next thought, sample, thinking tokens before

    def start_samples(self) -> list[Branch]:
        if not self.started:
            return self._start([ROOT] * self.rule.roots)
        branch = ROOT
        if self._forks:
            fork = min(self._forks)
            self._forks.remove(fork)
            branch = Branch(fork[1], fork[2])
        return self._start([branch] * min(self.rule.width, self.k - self.started))

    def add_token(self, sample: int, confidence: float) -> None:
        self._tokens += 1
        if self._tokens == self.rule.most_tokens:
            self._decide(f"{self._tokens} tokens are sampled")

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        self._forks += [(confidence, sample, end) for (end, _), (_, confidence) in pairwise(thoughts)]
        super().finish(sample, answer, thoughts)


@dataclass(frozen=True, slots=True)
class VerifierRates:
    """The rates at which right and wrong answers pass a verifier."""

    true_positive: float
    false_positive: float

    def __post_init__(self) -> None:
        _check_rate("true_positive", self.true_positive)
        _check_rate("false_positive", self.false_positive)

    def passes(self, rate: float) -> float:
        """Probability that a sample passes, for a problem whose samples are right at `rate`."""
        return self.true_positive * rate + self.false_positive * (1 - rate)


@dataclass(frozen=True, slots=True)
class ProblemClass:
    """Problems of one kind: their share of all problems, and the rate at which samples are right."""

    share: float
    rate: float

    def __post_init__(self) -> None:
        _check_rate("share", self.share)
        _check_rate("rate", self.rate)


def attempt_value(attempt: int, kinds: Sequence[ProblemClass], verifier: VerifierRates, penalty: float) -> float:
    """Expected gain of attempt number `attempt` (from 1), made only if all earlier ones were rejected.

    A right answer that passes earns 1, a wrong one costs `penalty` (C/B in the paper), giving up earns nothing.
    """
    total = sum(kind.share for kind in kinds)
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise OptionError(f"the shares of the kinds add up to {total:g}; accepted: 1")
    if penalty < 0 or attempt < 1:
        raise OptionError(f"penalty is {penalty} and attempt {attempt}; accepted: 0 or more, and 1 or more")
    return sum(
        kind.share
        * (1 - verifier.passes(kind.rate)) ** (attempt - 1)
        * (verifier.true_positive * kind.rate - penalty * verifier.false_positive * (1 - kind.rate))
        for kind in kinds
    )


def optimal_attempts(
    kinds: Sequence[ProblemClass], verifier: VerifierRates, penalty: float, most: int = MAX_ATTEMPTS
) -> int | None:
    """The most attempts before giving up; None if no attempt up to number `most` is a loss.

    The verifier must pass right answers at least as often as wrong ones: then every attempt after a loss is one too.
    """
    if verifier.true_positive < verifier.false_positive:
        raise OptionError(
            f"the verifier passes wrong answers more often ({verifier.false_positive}) than right ones "
            f"({verifier.true_positive}); accepted: one that does not, or its opposite"
        )
    for attempt in range(1, most + 1):
        if attempt_value(attempt, kinds, verifier, penalty) < 0:
            return attempt - 1
    return None


@dataclass(frozen=True, slots=True)
class Verified:
    """The first sample that `passes`; if the next attempt is expected to be a loss, none, so an empty answer.

    A verifier errs the more likely, the harder a problem has turned out, see `attempt_value`; its cost is not counted.
    """

    name: ClassVar[str] = "verified"
    signals: ClassVar[bool] = False
    passes: Callable[[Prompt, GenerationResult], bool]
    verifier: VerifierRates
    kinds: Sequence[ProblemClass]
    penalty: float = 1.0  # what a wrong answer that passes costs, where a right one earns 1

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`; at most k attempts."""
        return _VerifiedVote(k, self)


class _VerifiedVote(VoteState):
    """One attempt after another, each judged when it has finished; after `best` one more would be a loss."""

    def __init__(self, k: int, rule: Verified) -> None:
        self.best = optimal_attempts(rule.kinds, rule.verifier, rule.penalty, most=k)
        super().__init__(k if self.best is None else self.best, early=False)
        self._passes = rule.passes
        self._passed: int | None = None

    def start_samples(self) -> list[Branch]:
        return self._start([ROOT][: self.k - self.started])

    def judge(self, sample: int, prompt: Prompt, result: GenerationResult) -> None:
        if self._passes(prompt, result):
            self._passed = sample
            self._decide(f"attempt {sample + 1} passed")

    def tally(self) -> dict[str, float]:
        return tally(vote for vote in self.votes if vote.sample == self._passed)

    def explain(self) -> str:
        why = "no more are allowed" if self.best is None else "one more would be a loss"
        return self.decision or f"given up after {self.started} attempts: {why}"


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value}; accepted: a share from 0 to 1")
