"""Sampling again until a verifier passes (Inference Scaling fLaws, arXiv 2411.17501): limits, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import OptionError

MAX_ATTEMPTS = 10_000
FEWEST = 10  # right answers, and as many wrong ones, from which the rates of a verifier are estimated


class _Shares:
    """A dataclass whose fields are shares; raises OptionError for one that is not from 0 to 1."""

    __slots__: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise OptionError(f"{name} is {value}; accepted: a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class VerifierRates(_Shares):
    """The rates at which right and wrong answers pass a verifier."""

    true_positive: float
    false_positive: float

    def passes(self, rate: float) -> float:
        """Probability that a sample passes, for a problem whose samples are right at `rate`."""
        return self.true_positive * rate + self.false_positive * (1 - rate)


@dataclass(frozen=True, slots=True)
class ProblemClass(_Shares):
    """Problems of one kind: their share of all problems, and the rate at which samples are right."""

    share: float
    rate: float


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

    Each rejection makes it more likely that the problem is of a hard kind, so every attempt after a loss is a loss too.
    That holds only for a verifier that passes right answers at least as often as wrong ones, which is required.
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


def ceiling(kinds: Sequence[ProblemClass], verifier: VerifierRates) -> float:
    """The accuracy that sampling until the verifier passes has in the limit, on problems that can ever pass."""
    passing = [(kind.share, kind.rate, chance) for kind in kinds if (chance := verifier.passes(kind.rate))]
    total = sum(share for share, _, _ in passing)
    return (
        sum(share * verifier.true_positive * rate / chance for share, rate, chance in passing) / total if total else 0.0
    )


def estimate_rates(passed: Sequence[bool], right: Sequence[bool]) -> VerifierRates:
    """Estimate a verifier's rates from graded answers.

    Raises OptionError (code `too_few_answers`) unless ten of them are right and as many are wrong.
    """
    verdicts = {truth: [p for p, r in zip(passed, right, strict=True) if bool(r) is truth] for truth in (True, False)}
    missing = [
        f"{FEWEST - len(found)} more {'right' if truth else 'wrong'} ones"
        for truth, found in verdicts.items()
        if len(found) < FEWEST
    ]
    if missing:
        raise OptionError(
            f"{len(right)} answers do not tell how often a verifier errs; needed: {' and '.join(missing)}",
            code="too_few_answers",
        )
    return VerifierRates(*(sum(found) / len(found) for found in verdicts.values()))
