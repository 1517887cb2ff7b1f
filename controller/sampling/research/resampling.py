"""Sampling again until a verifier passes, when the verifier errs (Inference Scaling fLaws, arXiv 2411.17501).

Samples of one problem are right independently, at one rate; a verifier passes right ones at another, wrong ones at a
third.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ....errors import OptionError

MOST_ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class VerifierRates:
    """The rates at which right and wrong answers pass."""

    true_positive: float
    false_positive: float

    def __post_init__(self) -> None:
        _check_rate("true_positive", self.true_positive)
        _check_rate("false_positive", self.false_positive)

    def passes(self, rate: float) -> float:
        """Chance that one sample passes, of a problem whose samples are right at `rate`."""
        return self.true_positive * rate + self.false_positive * (1 - rate)


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """Chances of what a bounded number of attempts ends in; they sum to 1."""

    right: float
    wrong: float
    given_up: float


@dataclass(frozen=True, slots=True)
class ProblemClass:
    """Problems of one kind: their share of all, and the rate at which samples are right."""

    share: float
    rate: float

    def __post_init__(self) -> None:
        _check_rate("share", self.share)
        _check_rate("rate", self.rate)


def policy_outcome(rate: float, verifier: VerifierRates, attempts: int) -> PolicyOutcome:
    """What `attempts` samples of one problem end in, the first that passes being returned."""
    _check_rate("rate", rate)
    if attempts < 0:
        raise OptionError(f"attempts are {attempts}; accepted: 0 or more")
    passing = verifier.passes(rate)
    returned = 1 - (1 - passing) ** attempts
    right = returned * verifier.true_positive * rate / passing if passing else 0.0
    return PolicyOutcome(right, returned - right, 1 - returned)


def accuracy_limit(rate: float, verifier: VerifierRates) -> float:
    """Accuracy on one problem with attempts without end, P(right | passed); NaN if nothing ever passes.

    A model stays below any other whose single sample is right more often than this.
    """
    _check_rate("rate", rate)
    passing = verifier.passes(rate)
    return verifier.true_positive * rate / passing if passing else math.nan


def accuracy_ceiling(kinds: Sequence[ProblemClass], verifier: VerifierRates) -> float:
    """The limit of a data set: the mean over problems that can ever pass."""
    _check_shares(kinds)
    able = [kind for kind in kinds if kind.share and verifier.passes(kind.rate)]
    if not able:
        raise OptionError("nothing can ever pass this verifier; accepted: rates at which something does")
    return sum(kind.share * accuracy_limit(kind.rate, verifier) for kind in able) / sum(kind.share for kind in able)


def attempt_value(attempt: int, kinds: Sequence[ProblemClass], verifier: VerifierRates, penalty: float) -> float:
    """Expected gain of attempt number `attempt` (from 1), which is made only if all before were rejected.

    A right answer that passes earns 1, a wrong one costs `penalty` (C/B in the paper), giving up earns nothing.
    """
    _check_shares(kinds)
    if penalty < 0 or attempt < 1:
        raise OptionError(f"penalty is {penalty} and attempt {attempt}; accepted: 0 or more, and 1 or more")
    return sum(
        kind.share
        * (1 - verifier.passes(kind.rate)) ** (attempt - 1)
        * (verifier.true_positive * kind.rate - penalty * verifier.false_positive * (1 - kind.rate))
        for kind in kinds
    )


def optimal_attempts(
    kinds: Sequence[ProblemClass], verifier: VerifierRates, penalty: float, most: int = MOST_ATTEMPTS
) -> int | None:
    """How often to sample at most before giving up; None if no attempt up to number `most` is a loss.

    Each rejection makes it likelier that the problem is of a hard kind, so once an attempt is a loss, every later one
    is: that needs a verifier that passes right answers at least as often as wrong ones.
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


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value}; accepted: a share from 0 to 1")


def _check_shares(kinds: Sequence[ProblemClass]) -> None:
    total = sum(kind.share for kind in kinds)
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise OptionError(f"the shares of the kinds add up to {total:g}; accepted: 1")
