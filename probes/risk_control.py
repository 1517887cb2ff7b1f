"""A threshold for stopping whose harm is bounded, chosen on questions that neither the score nor the grid has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError
from .certificate import Certificate, check_share, most_harms, needed, upper_bound

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    check_share("alpha", alpha)
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
