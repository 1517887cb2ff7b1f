"""What was asked, what was seen, and the threshold that follows: a bound on harm that can be checked again."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, fields

from ..errors import OptionError


class CertificateError(OptionError):
    """A certificate contradicts itself or cannot be read."""


def check_share(name: str, value: float) -> None:
    """Raise OptionError for what is no share above 0 and below 1."""
    if not 0 < value < 1:
        raise OptionError(f"{name} is {value}; accepted: a share above 0 and below 1, such as 0.05")


def upper_bound(harms: int, n: int, delta: float) -> float:
    """The harm rate that, with confidence 1 - delta, is not exceeded where `harms` of `n` questions were harmed.

    Exact for independent questions (Clopper and Pearson, Biometrika 1934, one-sided).
    """
    from scipy.special import betainccinv

    check_share("delta", delta)
    if n < 1 or not 0 <= harms <= n:
        raise OptionError(f"{harms} of {n} questions were harmed; accepted: 0 to all of at least one")
    if harms == n:
        return 1.0
    return float(betainccinv(harms + 1, n - harms, delta)) if harms else -math.expm1(math.log(delta) / n)


def needed(alpha: float, delta: float) -> int:
    """The fewest questions that can certify alpha, which they do if none is harmed: 114 for 0.02 and 0.1."""
    check_share("alpha", alpha)
    check_share("delta", delta)
    n = math.ceil(math.log(delta) / math.log1p(-alpha))
    near = (m for m in (n - 1, n) if m >= 1 and upper_bound(0, m, delta) <= alpha)  # logarithms round
    return next(near, n + 1)


def most_harms(n: int, alpha: float, delta: float) -> int:
    """The most harms among `n` questions that certify alpha; -1 where not even none of them does."""
    check_share("alpha", alpha)
    return bisect_right(range(n + 1), alpha, key=lambda harms: upper_bound(harms, n, delta)) - 1


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was asked, what was seen, and the threshold that follows; contradictions raise CertificateError.

    With confidence 1 - delta over calibration splits, at most a share alpha of questions like the calibration ones is
    harmed at `threshold`; None: nothing could be certified, so never stop. harms and bound are those of the threshold,
    without one those of the strictest tested; the walk promises alpha, while the bound is what this threshold would
    show had it alone been tested. saved is the share of tokens saved on the calibration split; tested counts
    thresholds, with the one that failed; needed is the fewest questions that can certify alpha at all.
    """

    alpha: float
    delta: float
    n: int
    harms: int
    bound: float
    threshold: float | None
    saved: float
    tested: int
    needed: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            missing = value is None and field.name == "threshold"
            if not missing and (isinstance(value, bool) or not isinstance(value, int if whole else int | float)):
                raise CertificateError(f"{field.name} of a certificate is {value!r}; accepted: a number")
        if (wrong := self._contradiction()) is not None:
            raise CertificateError(f"the certificate contradicts itself: {wrong}; calibrate anew")

    def _contradiction(self) -> str | None:
        try:
            bound, least = upper_bound(self.harms, self.n, self.delta), needed(self.alpha, self.delta)
        except OptionError as error:
            return str(error)
        stops = self.threshold is not None
        claims = (
            (math.isclose(bound, self.bound, rel_tol=1e-6), f"the bound is {bound:.6g}, not {self.bound:.6g}"),
            (self.needed == least, f"{least} questions are needed, not {self.needed}"),
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

    def as_json(self) -> str:
        """One JSON object of all fields, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """The certificate of `as_json`; raises CertificateError for anything else, and if it contradicts itself."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise CertificateError(f"a certificate is no JSON: {error}") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(found, dict) or sorted(found) != sorted(names):
            raise CertificateError(f"no certificate: {text[:80]}; accepted: an object of {', '.join(names)}")
        return cls(**found)

    def __str__(self) -> str:
        sure = f"with {_percent(1 - self.delta)} confidence"
        if self.shortfall:
            return (
                f"never stops: {self.n:,} questions are too few to show {sure} that at most {_percent(self.alpha)} are "
                f"harmed; {self.shortfall:,} more are needed"
            )
        if self.threshold is None:
            return (
                f"never stops: the strictest threshold harmed {self.harms:,} of {self.n:,} questions, so that up to "
                f"{_percent(self.bound)} may be (asked: {_percent(self.alpha)}); give a stricter one or a better score"
            )
        return (
            f"stops at score >= {self.threshold:.4g}, which saved {_percent(self.saved)} of tokens and harmed "
            f"{self.harms:,} of {self.n:,} questions; {sure} at most {_percent(self.alpha)} are harmed, as asked "
            f"(this threshold by itself: {_percent(self.bound)})"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
