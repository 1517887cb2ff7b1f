"""A threshold for stopping whose harm is bounded, chosen on questions that neither the score nor the grid has seen."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class CertificateError(OptionError):
    """A certificate contradicts itself or cannot be read."""


def _open_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise OptionError(f"{name} is {value}; accepted: a share above 0 and below 1, such as 0.05")


def upper_bound(harms: int, n: int, delta: float) -> float:
    """The harm rate that, with confidence 1 - delta, is not exceeded where `harms` of `n` questions were harmed.

    Exact for independent questions (Clopper and Pearson, Biometrika 1934, one-sided).
    """
    from scipy.special import betainccinv

    _open_share("delta", delta)
    if n < 1 or not 0 <= harms <= n:
        raise OptionError(f"{harms} of {n} questions were harmed; accepted: 0 to all of at least one")
    if harms == n:
        return 1.0
    return float(betainccinv(harms + 1, n - harms, delta)) if harms else -math.expm1(math.log(delta) / n)


def needed(alpha: float, delta: float) -> int:
    """The fewest questions that can certify alpha, which they do if none is harmed: 114 for 0.02 and 0.1."""
    _open_share("alpha", alpha)
    _open_share("delta", delta)
    n = math.ceil(math.log(delta) / math.log1p(-alpha))
    near = (m for m in (n - 1, n) if m >= 1 and upper_bound(0, m, delta) <= alpha)  # logarithms round
    return next(near, n + 1)


def most_harms(n: int, alpha: float, delta: float) -> int:
    """The most harms among `n` questions that certify alpha; -1 where not even none of them does."""
    _open_share("alpha", alpha)
    return bisect_right(range(n + 1), alpha, key=lambda harms: upper_bound(harms, n, delta)) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What stopping at each thought boundary of a split would have led to, in flat columns.

    Boundaries of question q are the rows offsets[q] up to offsets[q + 1], in the order of thinking; none is fine.
    One rollout a question: the bound counts independent trials, and rollouts of one question succeed and fail
    together, so that a second one adds to n and hardly to what is known.

    offsets: [questions + 1]; score: [boundaries], readiness from 0 to 1; harm: [boundaries], the full thinking would
    have ended right and the answer here is wrong; saved: [boundaries], tokens that stopping here saves, less what it
    costs, so it may be negative; full: [questions], tokens of the full run. Raises OptionError.
    """

    offsets: Ints
    score: Floats
    harm: NDArray[np.bool_]
    saved: Floats
    full: Floats

    def __post_init__(self) -> None:
        types = {"offsets": np.int64, "score": np.float64, "harm": np.bool_, "saved": np.float64, "full": np.float64}
        for name, dtype in types.items():
            object.__setattr__(self, name, _column(name, getattr(self, name), dtype))
        starts, rows = self.offsets, len(self.score)
        if self.n < 1:
            raise OptionError("a split has no question; accepted: at least one")
        if starts[0] != 0 or starts[-1] != rows or (np.diff(starts) < 0).any():
            raise OptionError(f"offsets are not accepted; they rise from 0 to the number of boundaries, {rows}")
        if not rows == len(self.harm) == len(self.saved):
            sizes = f"{rows} scores, {len(self.harm)} harms and {len(self.saved)} savings"
            raise OptionError(f"{sizes}; accepted: one of each for every boundary")
        if len(self.full) != self.n or not self.full.min() > 0:
            raise OptionError(
                f"full has {len(self.full)} entries for {self.n} questions; accepted: tokens above 0 of each"
            )
        _readiness(self.score)
        if (self.saved > np.repeat(self.full, np.diff(starts))).any():
            raise OptionError(
                "a stop saves more than its full run has; are questions in the same order in all columns?"
            )

    @property
    def n(self) -> int:
        """How many questions."""
        return len(self.offsets) - 1


def _column(name: str, values: ArrayLike, dtype: type[Any]) -> NDArray[Any]:
    """A fresh read-only column of this type; raises OptionError where a value would change its meaning."""
    got = np.asarray(values)
    if got.ndim != 1 or (got.size and (got.dtype.kind not in "biuf" or not np.isfinite(got).all())):
        raise OptionError(f"{name} is not one column of finite numbers; score anew, or leave out what has no number")
    made = got.astype(dtype)
    if (made != got).any():
        raise OptionError(
            f"{name} holds values that are no {np.dtype(dtype)}; accepted: whole numbers, or True and False"
        )
    made.flags.writeable = False
    return made


def _readiness(scores: Floats) -> None:
    if scores.size and not 0 <= scores.min() <= scores.max() <= 1:
        raise OptionError(f"scores go from {scores.min():g} to {scores.max():g}; accepted: 0 to 1")


def stop_at(outcomes: Outcomes, threshold: float) -> Ints:
    """The row of the first boundary whose score reaches the threshold, -1 where none does: [questions].

    A row indexes the flat columns; take `offsets[:-1]` away for its place within the question.
    """
    reached = np.append(np.flatnonzero(outcomes.score >= threshold), len(outcomes.score))
    first = reached[np.searchsorted(reached, outcomes.offsets[:-1])]
    return np.where(first < outcomes.offsets[1:], first, -1)


class _Changes:
    """How harm and saving change as the threshold falls past each score at which some question would stop earlier.

    Only a boundary that outdoes all before it in its question can be a first one to reach a threshold, so these few
    rows, sorted by falling score, give every threshold's sums at once.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        owner = np.repeat(np.arange(outcomes.n), np.diff(outcomes.offsets))
        levels, rank = np.unique(outcomes.score, return_inverse=True)
        key = rank + owner * len(levels)  # a later question outranks all before it
        rows = np.flatnonzero(np.diff(np.maximum.accumulate(np.append(-1, key))))
        order = np.argsort(-outcomes.score[rows], kind="stable")
        followed = owner[rows][1:] == owner[rows][:-1]
        self.score, self.question = outcomes.score[rows][order], owner[rows][order]
        self.harm = _less_next(outcomes.harm[rows].astype(np.int64), followed)[order]
        self.saved = _less_next(outcomes.saved[rows], followed)[order]

    def sums(self, changes: NDArray[Any], thresholds: Floats) -> NDArray[Any]:
        """What the changes, a column of these rows, add up to at each threshold: [thresholds]."""
        return np.append(0, np.cumsum(changes))[np.searchsorted(-self.score, -thresholds, side="right")]


def _less_next(values: NDArray[Any], followed: NDArray[np.bool_]) -> NDArray[Any]:
    """Each value less the one whose place it takes, which is the next one of the same question, if there is one."""
    replaced = np.zeros_like(values)
    replaced[:-1][followed] = values[1:][followed]
    return np.asarray(values - replaced)


def curve(outcomes: Outcomes, thresholds: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Harm rate and share of tokens saved at each threshold, in any order: two of [thresholds]."""
    changes, at = _Changes(outcomes), np.asarray(thresholds, np.float64)
    return changes.sums(changes.harm, at) / outcomes.n, changes.sums(changes.saved, at) / outcomes.full.sum()


def oracle(outcomes: Outcomes, alpha: float) -> tuple[float | None, float, float]:
    """The most lenient threshold whose harm in this very split is within alpha; its harm rate and share saved.

    What one would choose who knew the truth: a yardstick, and no choice for data that is not the whole population.
    """
    _open_share("alpha", alpha)
    scores = np.unique(outcomes.score)
    harm, saved = curve(outcomes, scores)
    within = np.flatnonzero(harm <= alpha)
    if not len(within):
        return None, 0.0, 0.0
    return float(scores[within[0]]), float(harm[within[0]]), float(saved[within[0]])


def grid(scores: ArrayLike, count: int = 1000) -> Floats:
    """Thresholds that fall strictly: quantiles of the scores [boundaries] of the split that fitted them: [<= count].

    A fine grid costs the walk nothing, and a coarse one costs it saving. Never give it calibration scores: the order
    of tests has to be known before those are looked at.
    """
    found = _column("scores", scores, np.float64)
    _readiness(found)
    if not found.size or count < 2:
        raise OptionError(f"{found.size} scores, count {count}; accepted: at least one score, count from 2")
    return np.unique(np.quantile(found, np.linspace(0, 1, count)))[::-1]


def _falling(thresholds: Sequence[float] | Floats) -> Floats:
    found = np.asarray(thresholds, np.float64)
    if found.ndim != 1 or not found.size or not ((found >= 0) & (found <= 1)).all() or (np.diff(found) >= 0).any():
        raise OptionError("thresholds are not accepted; give at least one, from 0 to 1, each below the one before it")
    return found


def _passed(harms: Ints, most: int) -> int:
    """How many of the thresholds pass before the first that fails."""
    fails = harms > most
    return int(fails.argmax()) if fails.any() else len(fails)


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


def certify(outcomes: Outcomes, alpha: float, delta: float, thresholds: Sequence[float] | Floats) -> Certificate:
    """The most lenient threshold that a walk from the strictest reaches before a first one cannot be certified.

    Each threshold in turn is tested at the full level delta, and the walk ends with the first whose bound exceeds
    alpha: fixed-sequence testing (Angelopoulos et al., "Learn then Test", arXiv 2110.01052). Errors need no correction
    for the number of tests: to be wrong, the walk must pass the first threshold in the order whose true harm exceeds
    alpha, which is one test. Harm need not be monotone. That holds if thresholds were fixed without a look at
    `outcomes`; see `grid`. Several walks that share delta would outlive an unlucky failure, yet saved less in
    simulation from 1,000 questions on.
    """
    order, changes = _falling(thresholds), _Changes(outcomes)
    harms = changes.sums(changes.harm, order)
    passed = _passed(harms, most_harms(outcomes.n, alpha, delta))
    last = max(passed - 1, 0)
    return Certificate(
        alpha=alpha,
        delta=delta,
        n=outcomes.n,
        harms=int(harms[last]),
        bound=upper_bound(int(harms[last]), outcomes.n, delta),
        threshold=float(order[last]) if passed else None,
        saved=float(changes.sums(changes.saved, order)[last] / outcomes.full.sum()) if passed else 0.0,
        tested=min(passed + 1, len(order)),
        needed=needed(alpha, delta),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """What each of many calibrations does on the test pool, and what the oracle does there.

    threshold, harm, saved: [draws], with NaN for a threshold where the draw never stops.
    """

    alpha: float
    threshold: Floats
    harm: Floats
    saved: Floats
    oracle_threshold: float | None
    oracle_harm: float
    oracle_saved: float

    @property
    def exceeded(self) -> float:
        """The share of draws whose realised harm is above alpha: at most delta, but for chance."""
        return float((self.harm > self.alpha).mean())

    @property
    def efficiency(self) -> float:
        """Mean saving over that of the oracle; NaN where that saves nothing."""
        return float(self.saved.mean()) / self.oracle_saved if self.oracle_saved > 0 else math.nan


def resample(
    calibration_pool: Outcomes,
    test_pool: Outcomes,
    alpha: float,
    delta: float,
    thresholds: Sequence[float] | Floats,
    draws: int = 200,
    n: int = 1000,
    seed: int = 0,
) -> Resampled:
    """Certify on `draws` samples of `n` questions each and read what comes of it in the test pool.

    Questions are drawn with replacement, so that the pool is the population from which they come independently: with
    the same pool for both the guarantee holds exactly. With two pools, the luck of both is shared by all draws.
    """
    if draws < 1 or n < 1:
        raise OptionError(f"draws is {draws} and n is {n}; accepted: 1 or more")
    order, most, rng = _falling(thresholds), most_harms(n, alpha, delta), np.random.default_rng(seed)
    changes = _Changes(calibration_pool)
    passed = np.empty(draws, np.int64)
    for draw in range(draws):
        times = np.bincount(rng.integers(0, calibration_pool.n, n), minlength=calibration_pool.n)
        passed[draw] = _passed(changes.sums(changes.harm * times[changes.question], order), most)
    harm, saved = (np.append(0.0, column)[passed] for column in curve(test_pool, order))
    return Resampled(alpha, np.append(math.nan, order)[passed], harm, saved, *oracle(test_pool, alpha))
