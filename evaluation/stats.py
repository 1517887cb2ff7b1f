"""Statistics of paired comparisons on plain arrays, and accuracy over tokens.

The unit is the question: rollouts of one question are averaged first, so that repeating a question never makes an
interval narrower than the number of questions allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..probes.stats import auroc, calibration_bins, expected_calibration_error

Array = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 50_000  # resampled indices per block, to stay in the CPU cache
_PSEUDO_QUESTIONS = (1.0, 1.0, -1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, Any]:
        """The estimate and the interval as two figures of a result: `name` and `name_ci`."""
        return {name: self.estimate, f"{name}_ci": [self.low, self.high]}


def question_means(values: ArrayLike) -> Array:
    """Means over rollouts: [questions, rollouts] (or [questions]) -> [questions]."""
    array = np.asarray(values, np.float64)
    return array if array.ndim == 1 else array.mean(axis=1)


def resampled_means(columns: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Bootstrap means of paired columns: [questions, k] -> [resamples, k]; a question's columns stay together."""
    table = np.asarray(columns, np.float64)
    n, rng = len(table), np.random.default_rng(seed)
    out = np.empty((resamples, table.shape[1]))
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)
        out[start : start + step] = times @ table / n
    return out


@cache
def percentile_ends(n: int, level: float = LEVEL) -> tuple[float, float]:
    """The two quantiles of the bootstrap means of `n` questions that bound the confidence interval.

    This is Hesterberg's expanded percentile interval ("What Teachers Should Know About the Bootstrap", 2015): with
    few questions, bootstrap means vary too little, so the quantiles are widened as Student's t widens the normal.
    """
    z = stats.t.ppf((1 - level) / 2, n - 1) * math.sqrt(n / (n - 1)) if n > 1 else -math.inf
    low = float(stats.norm.cdf(z))
    return low, 1 - low


def paired_bootstrap(
    differences: ArrayLike, *, bounded: bool = True, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of paired differences with its percentile bootstrap interval; [questions] or [questions, rollouts].

    `bounded` says that the scores lie within 0..1. Then four pseudo-questions, two won and two lost, are added before
    resampling, after Bonett and Price (J. Educ. Behav. Stat. 2012), who add two. Without them, ten questions that
    happen to agree would prove two arms equal; with only two, rare harm near the margin is missed too often.
    """
    values = question_means(differences)
    sample = np.concatenate([values, _PSEUDO_QUESTIONS]) if bounded else values
    means = resampled_means(sample[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, percentile_ends(len(sample), level))
    return Interval(float(values.mean()), float(low), float(high))


def studentized_bootstrap(
    differences: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of unbounded paired differences (tokens) with its interval; [questions] or [questions, rollouts].

    The symmetric studentized bootstrap (Hall, J. R. Stat. Soc. B 1988): a few long generations dominate both the mean
    and its error, and a percentile interval over a hundred questions is then too narrow. One pseudo-question with the
    variance of the whole sample keeps the error of a resample without variation above zero.
    """
    values = question_means(differences)
    n, mean, variance = len(values), values.mean(), values.var()
    if variance == 0:
        return Interval(float(mean), float(mean), float(mean))
    centred = values - mean
    drift, square = resampled_means(np.stack([centred, centred**2], axis=1), resamples, seed).T
    errors = np.sqrt((n * (square - drift**2) + variance) / (n + 1))
    half = float(np.quantile(np.abs(drift) / errors, level) * np.sqrt(variance))
    return Interval(float(mean), float(mean - half), float(mean + half))


def ratio_bootstrap(
    ours: ArrayLike, base: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The saving 1 - mean(ours) / mean(base) with its bootstrap interval; pairs are resampled together."""
    table = np.stack([question_means(ours), question_means(base)], axis=1)
    means = resampled_means(table, resamples, seed)
    savings = 1 - means[:, 0] / means[:, 1]
    low, high = np.quantile(savings, percentile_ends(len(table), level))
    total = table.mean(axis=0)
    return Interval(float(1 - total[0] / total[1]), float(low), float(high))


def mcnemar(differences: ArrayLike) -> float:
    """Exact two-sided McNemar p-value from paired differences of right / wrong; 1 if no pair disagrees.

    With several rollouts a question counts once, by the sign of its mean difference.
    """
    values = question_means(differences)
    won, lost = int((values > 0).sum()), int((values < 0).sum())
    return float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def wilson(rate: float, n: float) -> Interval:
    """A rate over `n` questions, each asked once, with Wilson's interval; both may be fractional."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def rate_interval(rights: ArrayLike) -> Interval:
    """The mean of right (1) and wrong (0) with Wilson's interval; [questions] or [questions, rollouts].

    With rollouts, `n` is the effective sample size (Korn and Graubard, Survey Methodology 1998): between the number of
    questions and the number of answers.
    """
    answers, means = np.asarray(rights, np.float64), question_means(rights)
    rate, variance = float(means.mean()), float(means.var())
    if variance == 0:
        return wilson(rate, len(means))
    effective = len(means) * rate * (1 - rate) / variance
    return wilson(rate, min(effective, answers.size))


def needed_questions(deviation: float, distance: float) -> int | None:
    """Number of questions at which the interval excludes a threshold, with a power of 80 %; None at a distance of 0.

    `deviation` is that of the per-question differences, `distance` that of their mean from the threshold.
    """
    if distance <= 0:
        return None
    z = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(0.8))
    return max(2, math.ceil((z * deviation / distance) ** 2))


def smoothed_deviation(differences: ArrayLike) -> float:
    """Standard deviation of per-question score differences, with one won and one lost question added to avoid 0."""
    return float(np.concatenate([question_means(differences), [1.0, -1.0]]).std())


def reliability(confidences: Sequence[float], correct: Sequence[bool]) -> dict[str, Any]:
    """Calibration of stated confidences: `n`, `ece`, `auroc` and the non-empty ones of ten `bins` of equal width.

    The expected calibration error (Naeini et al. 2015) is the mean distance between a bin's confidence and its
    accuracy, weighted by its size. AUROC is None if all answers are right or all are wrong.
    """
    stated, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    cells = calibration_bins(right, stated, equal_width=True)
    area = auroc(right > 0, stated)
    return {
        "n": len(stated),
        "ece": expected_calibration_error(cells),
        "auroc": None if math.isnan(area) else area,
        "bins": [asdict(cell) for cell in cells],
    }


# -- accuracy over tokens ----------------------------------------------------------------------------------------------
#
# A curve is the best accuracy up to a number of tokens: linear in the logarithm of tokens between points and flat
# beyond them, because a user can always choose the cheaper point that was as good.

Point = tuple[float, float]  # (mean tokens of a generation, accuracy)


def common_range(*families: Sequence[Point]) -> tuple[float, float] | None:
    """The range of tokens that all families of points cover; None if there is none."""
    tokens = [[point[0] for point in family] for family in families]
    low, high = max(map(min, tokens)), min(map(max, tokens))
    return (low, high) if low < high else None


def area(points: Sequence[Point], low: float, high: float) -> float:
    """Mean accuracy of the points' curve over the logarithm of tokens, from `low` to `high` tokens."""
    knots: dict[float, float] = {}
    for tokens, accuracy in sorted(points):
        knots[tokens] = max(accuracy, *knots.values(), -math.inf)
    at = np.array([low, *(tokens for tokens in knots if low < tokens < high), high])
    heights = np.interp(np.log(at), np.log(list(knots)), list(knots.values()))
    return float(np.trapezoid(heights, np.log(at)) / math.log(high / low))


def iso_saving(
    curve_tokens: Sequence[Array],
    curve_right: Sequence[Array],
    our_tokens: Array,
    our_right: Array,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """An arm's `iso_saving`, 1 - ours / the curve's tokens at our accuracy, and its interval `iso_saving_ci`.

    All arrays are means over rollouts of the same questions, [questions]; the curve has one per budget. The saving is
    None for an arm that is less accurate than the cheapest budget, and the interval, a bootstrap over questions, is
    None if it reaches that far. Both are None without a curve, or if a budget costs nothing on some question.

    If the whole curve is less accurate than the arm, the saving is measured against its most expensive point and is a
    lower bound; the interval then ends at 1.
    """
    k = len(curve_tokens)
    table = np.stack([*curve_tokens, *curve_right, our_tokens, our_right], axis=1)
    if not k or (table[:, :k] <= 0).any():
        return {"iso_saving": None, "iso_saving_ci": None}
    least, _ = _savings(table.mean(axis=0)[None], k)
    resampled_least, resampled_most = _savings(resampled_means(table, resamples, seed), k)
    ends = percentile_ends(len(table))
    low = np.quantile(resampled_least, ends[0], method="inverted_cdf")  # values may be infinite, so no interpolation
    high = np.quantile(resampled_most, ends[1], method="inverted_cdf")
    saving = float(least[0])
    defined = math.isfinite(saving)
    return {
        "iso_saving": saving if defined else None,
        "iso_saving_ci": [float(low), float(high)] if defined and math.isfinite(low) else None,
    }


def _savings(means: Array, k: int) -> tuple[Array, Array]:
    """The least and the greatest possible saving of each row [k tokens, k accuracies, our tokens, our accuracy]."""
    least, most = _needed(means[:, :k], means[:, k : 2 * k], means[:, -1])
    ours = means[:, -2]
    share = np.divide(ours, least, out=np.full_like(ours, math.inf), where=least > 0)
    return 1 - share, 1 - ours / most


def _needed(tokens: Array, right: Array, target: Array) -> tuple[Array, Array]:
    """The range of tokens in which each row's curve [rows, k] reaches its target accuracy [rows]."""
    order = tokens.argsort(axis=1, kind="stable")
    logs = np.log(np.take_along_axis(tokens, order, axis=1))
    best = np.maximum.accumulate(np.take_along_axis(right, order, axis=1), axis=1)
    below, beyond = target < best[:, 0], target > best[:, -1]
    after = np.minimum((best < target[:, None]).sum(axis=1), tokens.shape[1] - 1)
    before = np.maximum(after - 1, 0)

    def at(table: Array, column: NDArray[np.int64]) -> Array:
        return np.take_along_axis(table, column[:, None], axis=1)[:, 0]

    rise = at(best, after) - at(best, before)
    share = np.clip(np.divide(target - at(best, before), rise, out=np.ones_like(rise), where=rise > 0), 0, 1)
    needed = np.exp(at(logs, before) + share * (at(logs, after) - at(logs, before)))
    return np.where(below, 0.0, needed), np.where(beyond, math.inf, needed)
