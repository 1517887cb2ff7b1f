"""A bound on the harm of stopping early, with the evidence for it, which is checked again whenever it is read."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from .stats import binomial_upper_bound


class CertificateError(OptionError):
    """A certificate contradicts itself or cannot be read."""

    code = "invalid_certificate"


def check_share(name: str, value: float) -> None:
    """Raise OptionError unless the value lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise OptionError(f"{name} is {value}; accepted: a share above 0 and below 1, such as 0.05")


def harm_upper_bound(harms: int, n: int, delta: float) -> float:
    """Upper bound of the harm rate, with confidence 1 - delta, if `harms` of `n` independent questions were harmed."""
    check_share("delta", delta)
    if n < 1 or not 0 <= harms <= n:
        raise OptionError(f"{harms} of {n} questions were harmed; accepted: from 0 to n harms, and n of at least 1")
    return binomial_upper_bound(harms, n, delta)


def needed_questions(alpha: float, delta: float) -> int:
    """The fewest questions that can certify alpha, if none of them is harmed: 114 for 0.02 and 0.1."""
    check_share("alpha", alpha)
    check_share("delta", delta)
    n = math.ceil(math.log(delta) / math.log1p(-alpha))
    candidates = (m for m in (n - 1, n) if m >= 1 and harm_upper_bound(0, m, delta) <= alpha)  # logarithms round
    return next(candidates, n + 1)


def max_harms(n: int, alpha: float, delta: float) -> int:
    """The most harms among `n` questions that still certify alpha; -1 if even none of them does."""
    check_share("alpha", alpha)
    return bisect_right(range(n + 1), alpha, key=lambda harms: harm_upper_bound(harms, n, delta)) - 1


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold with the evidence for it; contradicting fields raise CertificateError.

    With confidence 1 - delta over calibration splits, at most a share alpha of questions like the calibration questions
    is harmed by stopping at `threshold`.
    """

    alpha: float
    delta: float
    n: int  # questions in the calibration split
    harms: int  # questions harmed at the threshold, or at the strictest threshold tested if none was certified
    bound: float  # upper bound of the harm rate at that threshold, had it been the only one tested
    threshold: float | None  # score from which thinking stops; None means never, because nothing could be certified
    saved: float  # share of tokens saved on the calibration split
    tested: int  # thresholds tested, including the one that failed
    needed: int  # fewest questions that can certify alpha

    def __post_init__(self) -> None:
        try:
            wrong = self._contradiction()
        except TypeError as error:
            wrong = f"not numbers ({error})"
        if wrong is not None:
            raise CertificateError(f"the certificate contradicts itself: {wrong}; calibrate again")

    def _contradiction(self) -> str | None:
        try:
            bound = harm_upper_bound(self.harms, self.n, self.delta)
            needed = needed_questions(self.alpha, self.delta)
        except OptionError as error:
            return str(error)
        stops = self.threshold is not None
        claims = (
            (math.isclose(bound, self.bound, rel_tol=1e-6), f"the bound is {bound:.6g}, not {self.bound:.6g}"),
            (self.needed == needed, f"{needed} questions are needed, not {self.needed}"),
            (stops == (self.bound <= self.alpha), f"threshold {self.threshold} for a bound of {self.bound:.6g}"),
            (self.threshold is None or 0 <= self.threshold <= 1, f"threshold {self.threshold} is not within 0 to 1"),
            (-math.inf < self.saved <= 1 and (stops or self.saved == 0), f"saved is {self.saved}"),
            (self.tested >= 1, f"{self.tested} thresholds were tested"),
        )
        return next((wrong for holds, wrong in claims if not holds), None)

    @property
    def shortfall(self) -> int:
        """How many more questions are needed before anything can be certified."""
        return max(0, self.needed - self.n)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """Read what `asdict` gave; raises CertificateError for anything else, and for contradictions."""
        try:
            return cls(**values)
        except TypeError as error:
            raise CertificateError(f"not a certificate: {error}; calibrate again") from None

    def __str__(self) -> str:
        confidence = f"with {_percent(1 - self.delta)} confidence"
        if self.shortfall:
            return (
                f"never stops: {self.n:,} questions are too few to show {confidence} that at most "
                f"{_percent(self.alpha)} are harmed; {self.shortfall:,} more are needed"
            )
        if self.threshold is None:
            return (
                f"never stops: the strictest threshold harmed {self.harms:,} of {self.n:,} questions, so up to "
                f"{_percent(self.bound)} may be harmed (allowed: {_percent(self.alpha)}); use a stricter threshold or "
                "a better score"
            )
        return (
            f"stops at score >= {self.threshold:.4g}, which saved {_percent(self.saved)} of tokens and harmed "
            f"{self.harms:,} of {self.n:,} questions; {confidence} at most {_percent(self.alpha)} are harmed "
            f"(bound for this threshold alone: {_percent(self.bound)})"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
