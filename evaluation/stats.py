"""The statistics of a paired comparison: plain arrays in, plain numbers out.

The unit of everything is the question. Rollouts of one question are averaged before they come here, so that asking
the same question more often never makes an interval look surer than the number of questions allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 50_000  # drawn indices held at a time: what a processor's cache takes
_IMAGINED = (1.0, 1.0, -1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


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
    """The quantiles of bootstrap means of `n` questions between which an interval lies.

    They are moved outwards as Student's t is from the normal (the expanded percentile interval of Hesterberg,
    "What Teachers Should Know About the Bootstrap", 2015): means of few questions vary less than they should.
    """
    z = stats.t.ppf((1 - level) / 2, n - 1) * math.sqrt(n / (n - 1)) if n > 1 else -math.inf
    low = float(stats.norm.cdf(z))
    return low, 1 - low


def paired_bootstrap(
    differences: ArrayLike, *, bounded: bool = True, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of paired differences with its percentile bootstrap interval; [questions] or [questions, rollouts].

    bounded: the differences are of scores within 0..1, and four imagined questions, two won and two lost, are added to
    those resampled, after Bonett and Price's adjustment (J. Educ. Behav. Stat. 2012), which imagines two. Without them,
    ten questions that happen to agree would prove that two arms are equal; with two, harm that is rare would still be
    overlooked too often at the edge of a margin.
    """
    values = question_means(differences)
    drawn_from = np.concatenate([values, _IMAGINED]) if bounded else values
    means = resampled_means(drawn_from[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, percentile_ends(len(drawn_from), level))
    return Interval(float(values.mean()), float(low), float(high))


def studentized_bootstrap(
    differences: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of paired differences that know no bounds, such as tokens; [questions] or [questions, rollouts].

    The symmetric studentized bootstrap (Hall, J. R. Stat. Soc. B 1988): it makes up for the few long generations that
    decide both the mean and its error, of which a percentile interval over a hundred questions sees too little. One
    more imagined question that varies as all do keeps a resample without any variation from having no error.
    """
    values = question_means(differences)
    n, mean, variance = len(values), values.mean(), values.var()
    if variance == 0:
        return Interval(float(mean), float(mean), float(mean))
    apart = values - mean
    drift, square = resampled_means(np.stack([apart, apart**2], axis=1), resamples, seed).T
    errors = np.sqrt((n * (square - drift**2) + variance) / (n + 1))
    half = float(np.quantile(np.abs(drift) / errors, level) * np.sqrt(variance))
    return Interval(float(mean), float(mean - half), float(mean + half))


def ratio_bootstrap(
    ours: ArrayLike, base: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The saving 1 - mean(ours) / mean(base) over paired questions, resampled together."""
    table = np.stack([question_means(ours), question_means(base)], axis=1)
    means = resampled_means(table, resamples, seed)
    savings = 1 - means[:, 0] / means[:, 1]
    low, high = np.quantile(savings, percentile_ends(len(table), level))
    total = table.mean(axis=0)
    return Interval(float(1 - total[0] / total[1]), float(low), float(high))


def upper_bound(events: float, n: int, level: float = LEVEL) -> float:
    """One-sided Clopper-Pearson upper bound of a rate; `events` may be a fraction (a mean over rollouts, summed)."""
    return 1.0 if events >= n else float(stats.beta.ppf(level, events + 1, n - events))


def lower_bound(events: float, n: int, level: float = LEVEL) -> float:
    """One-sided Clopper-Pearson lower bound of a rate."""
    return 0.0 if events <= 0 else float(stats.beta.ppf(1 - level, events, n - events + 1))


def mcnemar(differences: ArrayLike) -> float:
    """Exact two-sided McNemar p-value from paired differences of right / wrong; 1 if no pair disagrees.

    With several rollouts a question counts once, by the sign of its mean difference.
    """
    values = question_means(differences)
    won, lost = int((values > 0).sum()), int((values < 0).sum())
    return float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def wilson(rate: float, n: float, level: float = LEVEL) -> Interval:
    """A rate over `n` questions, each asked once, with Wilson's interval."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def rate_interval(rights: ArrayLike, level: float = LEVEL) -> Interval:
    """The mean of right (1) and wrong (0) with Wilson's interval; [questions] or [questions, rollouts].

    With rollouts, `n` is the number of questions asked once that would vary as much, between the number of questions
    and that of answers (the effective sample size of Korn and Graubard, Survey Methodology 1998).
    """
    answers, means = np.asarray(rights, np.float64), question_means(rights)
    rate, variance = float(means.mean()), float(means.var())
    if variance == 0:
        return wilson(rate, len(means), level)
    effective = len(means) * rate * (1 - rate) / variance
    return wilson(rate, min(effective, answers.size), level)


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties half; NaN if one class is missing."""
    values, positive = np.asarray(scores, np.float64), np.asarray(labels, bool)
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if not n_pos or not n_neg:
        return math.nan
    ranks = stats.rankdata(values)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def needed_questions(deviation: float, distance: float, level: float = LEVEL, power: float = 0.8) -> int | None:
    """Questions after which an interval around a mean `distance` away from a line misses the line with this power.

    deviation: standard deviation of the per-question differences. None if the mean lies on the line: no number will do.
    """
    if distance <= 0:
        return None
    z = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
    return max(2, math.ceil((z * deviation / distance) ** 2))


def smoothed_deviation(differences: ArrayLike) -> float:
    """Standard deviation of per-question score differences, kept from being 0 by one question won and one lost."""
    return float(np.concatenate([question_means(differences), [1.0, -1.0]]).std())
