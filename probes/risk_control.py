"""Choosing a stopping threshold whose harm is bounded, and the certificate that says so.

The questions are ones that neither the score nor the grid of thresholds has seen.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError
from .stats import binomial_upper_bound


class CertificateError(OptionError, code="invalid_certificate"):
    """A certificate contradicts itself or cannot be read."""


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
        except (TypeError, OptionError) as error:
            wrong = str(error)
        if wrong is not None:
            raise CertificateError(f"the certificate contradicts itself: {wrong}; calibrate again")

    def _contradiction(self) -> str | None:
        bound = harm_upper_bound(self.harms, self.n, self.delta)
        needed = needed_questions(self.alpha, self.delta)
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
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
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


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The result of stopping at each thought boundary of a split, in flat columns.

    Boundaries of question q are the rows offsets[q] to offsets[q + 1], in order, perhaps none. The bound counts
    independent trials, so use one rollout a question. Raises OptionError for columns that do not fit.
    """

    offsets: Ints  # [questions + 1]
    score: Floats  # [boundaries], readiness from 0 to 1
    harm: NDArray[np.bool_]  # [boundaries], whether the full thinking ends right and the answer here is wrong
    saved: Floats  # [boundaries], tokens saved by stopping here minus its cost, possibly negative
    full: Floats  # [questions], tokens of the full run

    def __post_init__(self) -> None:
        types = {"offsets": np.int64, "score": np.float64, "harm": np.bool_, "saved": np.float64, "full": np.float64}
        for name, dtype in types.items():
            object.__setattr__(self, name, np.array(getattr(self, name), dtype))
        sizes, rows = np.diff(self.offsets), len(self.score)
        if self.n < 1 or self.offsets[0] or self.offsets[-1] != rows or (sizes < 0).any():
            raise OptionError(
                f"offsets must rise from 0 to the number of boundaries, {rows}, with at least one question"
            )
        if not rows == len(self.harm) == len(self.saved) or len(self.full) != self.n:
            lengths = f"{len(self.harm)} harms, {len(self.saved)} savings and {len(self.full)} full runs"
            raise OptionError(f"{lengths} for {rows} boundaries of {self.n} questions; accepted: one of each")
        _check_shares("scores", self.score)
        if not (self.full > 0).all() or not (self.saved <= np.repeat(self.full, sizes)).all():
            raise OptionError("full runs need tokens, and stopping cannot save more; check the order of the columns")

    @property
    def n(self) -> int:
        return len(self.offsets) - 1


def _check_shares(name: str, values: Floats) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise OptionError(f"{name} go from {values.min():g} to {values.max():g}; accepted: 0 to 1")


def first_stops(outcomes: Outcomes, threshold: float) -> Ints:
    """Find the row of each question's first boundary whose score reaches the threshold: [questions], -1 for none."""
    reached = np.append(np.flatnonzero(outcomes.score >= threshold), len(outcomes.score))
    first = reached[np.searchsorted(reached, outcomes.offsets[:-1])]
    return np.where(first < outcomes.offsets[1:], first, -1)


class _Changes:
    """Changes of harm and savings as the threshold falls past each score at which some question would stop earlier.

    Only boundaries that score higher than all earlier ones of their question count; sorted, they give all thresholds.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        owner = np.repeat(np.arange(outcomes.n), np.diff(outcomes.offsets))
        levels, rank = np.unique(outcomes.score, return_inverse=True)
        key = rank + owner * len(levels)  # a later question outranks all before it
        rows = np.flatnonzero(np.diff(np.maximum.accumulate(np.append(-1, key))))
        order = np.argsort(-outcomes.score[rows], kind="stable")
        continued = owner[rows][1:] == owner[rows][:-1]
        self.score, self.question = outcomes.score[rows][order], owner[rows][order]
        self.harm = _subtract_next(outcomes.harm[rows].astype(np.int64), continued)[order]
        self.saved = _subtract_next(outcomes.saved[rows], continued)[order]

    def sum_at(self, thresholds: Floats, changes: NDArray[Any]) -> NDArray[Any]:
        """Sum up the changes, a column of these rows, down to each threshold: [thresholds]."""
        return np.append(0, np.cumsum(changes))[np.searchsorted(-self.score, -thresholds, side="right")]


def _subtract_next(values: NDArray[Any], continued: NDArray[np.bool_]) -> NDArray[Any]:
    """Subtract from each value the next one of the same question, which it replaces."""
    replaced = np.zeros_like(values)
    replaced[:-1][continued] = values[1:][continued]
    return np.asarray(values - replaced)


def risk_curve(outcomes: Outcomes, thresholds: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Compute the harm rate and the share of tokens saved at each threshold, in any order: two of [thresholds]."""
    changes, at = _Changes(outcomes), np.asarray(thresholds, np.float64)
    return changes.sum_at(at, changes.harm) / outcomes.n, changes.sum_at(at, changes.saved) / outcomes.full.sum()


def oracle_threshold(outcomes: Outcomes, alpha: float) -> tuple[float | None, float, float]:
    """Find the most lenient threshold within alpha in this very split, in hindsight; its harm rate and share saved."""
    check_share("alpha", alpha)
    scores = np.unique(outcomes.score)
    harm, saved = risk_curve(outcomes, scores)
    within = np.flatnonzero(harm <= alpha)
    if not len(within):
        return None, 0.0, 0.0
    return float(scores[within[0]]), float(harm[within[0]]), float(saved[within[0]])


def threshold_grid(scores: ArrayLike, count: int = 1000) -> Floats:
    """Choose strictly falling thresholds: at most `count` quantiles of scores [boundaries].

    Take the scores of the split that fitted them: the order of tests must be fixed before calibration scores are seen.
    """
    column = np.asarray(scores, np.float64)
    _check_shares("scores", column)
    if not column.size or count < 2:
        raise OptionError(f"{column.size} scores, count {count}; accepted: at least one score and a count of 2 or more")
    return np.unique(np.quantile(column, np.linspace(0, 1, count)))[::-1]


def _check_falling(thresholds: Sequence[float] | Floats) -> Floats:
    order = np.asarray(thresholds, np.float64)
    _check_shares("thresholds", order)
    if not order.size or (np.diff(order) >= 0).any():
        raise OptionError("thresholds are not accepted; give at least one, each below the one before it")
    return order


def _count_passed(harms: Ints, most: int) -> int:
    fails = harms > most
    return int(fails.argmax()) if fails.any() else len(fails)


def certify(outcomes: Outcomes, alpha: float, delta: float, thresholds: Sequence[float] | Floats) -> Certificate:
    """Certify the most lenient threshold before the first one that fails, starting from the strictest.

    Each threshold is tested at the full level delta, until the first whose bound exceeds alpha: fixed-sequence testing
    (Angelopoulos et al., "Learn then Test", arXiv 2110.01052). An error must pass the first threshold in the order
    whose true harm exceeds alpha, which is one test, so their number needs no correction, and harm need not be
    monotone. This holds only if thresholds were fixed without looking at `outcomes`; see `threshold_grid`.
    """
    order, changes = _check_falling(thresholds), _Changes(outcomes)
    harms = changes.sum_at(order, changes.harm)
    passed = _count_passed(harms, max_harms(outcomes.n, alpha, delta))
    last = max(passed - 1, 0)
    return Certificate(
        alpha=alpha,
        delta=delta,
        n=outcomes.n,
        harms=int(harms[last]),
        bound=harm_upper_bound(int(harms[last]), outcomes.n, delta),
        threshold=float(order[last]) if passed else None,
        saved=float(changes.sum_at(order, changes.saved)[last] / outcomes.full.sum()) if passed else 0.0,
        tested=min(passed + 1, len(order)),
        needed=needed_questions(alpha, delta),
    )


def resample_calibrations(
    pool: Outcomes,
    alpha: float,
    delta: float,
    thresholds: Sequence[float] | Floats,
    draws: int = 200,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Certify on `draws` samples of `n` questions each, and measure each threshold on the whole pool.

    Questions are drawn with replacement, so the guarantee holds exactly. Returns the share of draws whose realised harm
    is above alpha, and the mean saving divided by that of the oracle, NaN if that saves nothing.
    """
    order, most, rng = _check_falling(thresholds), max_harms(n, alpha, delta), np.random.default_rng(seed)
    changes = _Changes(pool)
    passed = np.empty(draws, np.int64)
    for draw in range(draws):
        times = np.bincount(rng.integers(0, pool.n, n), minlength=pool.n)
        passed[draw] = _count_passed(changes.sum_at(order, changes.harm * times[changes.question]), most)
    harm, saved = (np.append(0.0, column)[passed] for column in risk_curve(pool, order))
    best = oracle_threshold(pool, alpha)[2]
    return float((harm > alpha).mean()), float(saved.mean()) / best if best > 0 else math.nan
