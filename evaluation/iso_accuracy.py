"""Accuracy over tokens: the area under a curve of points, and an arm's saving against a curve of budgets.

A curve is the best accuracy up to a number of tokens: linear in the logarithm of tokens between points and flat beyond
them, because a user can always choose the cheaper point that was as good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from .stats import LEVEL, RESAMPLES, Array, percentile_ends, resampled_means

Point = tuple[float, float]
"""(mean tokens of a generation, accuracy)."""


@dataclass(frozen=True, slots=True)
class IsoSaving:
    """The share of tokens saved against the curve at the same accuracy, with its interval; None if undefined.

    If the whole curve is less accurate than the arm, the saving is measured against its most expensive point and is a
    lower bound; the interval then ends at 1.
    """

    saving: float | None
    interval: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """The fields of a benchmark result."""
        return {"iso_saving": self.saving, "iso_saving_ci": self.interval and list(self.interval)}


def common_range(*families: Sequence[Point]) -> tuple[float, float] | None:
    """The range of tokens that all families of points cover; None if there is none."""
    tokens = [[point[0] for point in family] for family in families]
    low, high = max(map(min, tokens)), min(map(max, tokens))
    return (low, high) if low < high else None


def area(points: Sequence[Point], low: float, high: float) -> float:
    """Mean accuracy of the points' curve over the logarithm of tokens, from `low` to `high` tokens."""
    if not 0 < low < high or not points or min(points)[0] <= 0:
        raise OptionError(f"the range is {low:g} to {high:g} tokens; accepted: a range above 0, and points above 0")
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
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> IsoSaving:
    """An arm's saving, 1 - ours / the curve's tokens at our accuracy, with a bootstrap interval over questions.

    All arrays are means over rollouts of the same questions, [questions]; the curve has one per budget. The saving is
    None for an arm that is less accurate than the cheapest budget, and the interval is None if it reaches that far.
    Both are None without a curve, or if a budget costs nothing on some question.
    """
    k = len(curve_tokens)
    table = np.stack([*curve_tokens, *curve_right, our_tokens, our_right], axis=1)
    if not k or (table[:, :k] <= 0).any():
        return IsoSaving(None, None)
    least, _ = _savings(table.mean(axis=0)[None], k)
    resampled_least, resampled_most = _savings(resampled_means(table, resamples, seed), k)
    ends = percentile_ends(len(table), level)
    low = np.quantile(resampled_least, ends[0], method="inverted_cdf")  # values may be infinite, so no interpolation
    high = np.quantile(resampled_most, ends[1], method="inverted_cdf")
    saving = float(least[0])
    if not math.isfinite(saving):
        return IsoSaving(None, None)
    return IsoSaving(saving, (float(low), float(high)) if math.isfinite(low) else None)


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
