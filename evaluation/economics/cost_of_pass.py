"""Cost-of-pass (arXiv 2504.13359): what a right answer costs, the cheapest way to one, and what a new way saves.

The unit is the problem. A way of answering (a model, an arm) has a cost-of-pass on each; the frontier takes the
cheapest way on each, and a data set's frontier is the mean over its problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ...errors import TerselyError, unknown
from ..stats import Array, Interval, paired_bootstrap, question_means, ratio_bootstrap, resampled_means

HUMAN = "human expert"
EXPERT_USD: Mapping[str, float] = {"AIME": 20.0, "GPQA": 58.0}
"""What the paper pays an expert per problem; its expert is always right, so this is the cost-of-pass."""
HALF = 0.5


class EconomicsError(TerselyError, ValueError):
    """A cost is infinite where a finite one is needed, or columns do not fit together."""


def cost_of_pass(costs: ArrayLike, passes: ArrayLike, prior: float = 0.0) -> float:
    """Mean cost of a generation over its mean success, both of the same shape; infinite when nothing passed.

    Of one problem's runs this is the paper's v(m, p); of a whole set it is the cost of a right answer somewhere in it.
    prior: successes and failures imagined of each (0.5: add-half smoothing), so that no success gives a bound that
    shrinks with the number of runs instead of infinity.
    """
    cost, right = np.asarray(costs, np.float64), np.asarray(passes, np.float64)
    if cost.shape != right.shape or not cost.size:
        raise EconomicsError(f"costs are {cost.shape} and passes {right.shape}; accepted: the same shape, not empty")
    rate = (float(right.sum()) + prior) / (right.size + 2 * prior)
    return float(cost.mean()) / rate if rate else math.inf


def costs_of_pass(costs: ArrayLike, passes: ArrayLike, prior: float = 0.0) -> Array:
    """Cost-of-pass of each problem: [questions, runs] (or [questions], of one run) twice -> [questions]."""
    cost, right = np.asarray(costs, np.float64), np.asarray(passes, np.float64)
    if cost.shape != right.shape:
        raise EconomicsError(f"costs are {cost.shape} and passes {right.shape}; accepted: the same shape")
    return np.array([cost_of_pass(c, r, prior) for c, r in zip(cost, right, strict=True)])


def set_cost_of_pass(
    costs: ArrayLike, passes: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The set's mean cost over its mean success with a bootstrap interval over questions; ends may be infinite."""
    table = np.stack([question_means(costs), question_means(passes)], axis=1)
    cost, right = resampled_means(table, resamples, seed).T
    ratios = np.divide(cost, right, out=np.full_like(cost, math.inf), where=right > 0)
    # Between two infinities there is nothing to interpolate.
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(cost_of_pass(costs, passes), float(low), float(high))


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The cheapest cost-of-pass of each problem [questions] and whose it is (None where nobody passes)."""

    values: Array
    best: tuple[str | None, ...]

    @property
    def mean(self) -> float:
        """The data set's frontier cost-of-pass; infinite if one problem's is."""
        return float(self.values.mean())

    def interval(self, seed: int = 0) -> Interval:
        """The mean with a bootstrap interval over problems; raises EconomicsError if it is infinite."""
        return paired_bootstrap(_finite(self.values), bounded=False, seed=seed)

    def by_set(self, sets: Sequence[str]) -> dict[str, float]:
        """The mean of each set, given the set that each problem belongs to."""
        if len(sets) != len(self.values):
            raise EconomicsError(f"{len(sets)} sets are named for {len(self.values)} problems; name one for each")
        names = np.array(sets)
        return {name: float(self.values[names == name].mean()) for name in dict.fromkeys(sets)}


def frontier(ways: Mapping[str, ArrayLike], human: float | None = None) -> Frontier:
    """The frontier of ways, each with its costs-of-pass [questions], and of a human expert at `human` USD a problem.

    Without any way the human is alone, on one problem that stands for all.
    """
    columns = {name: np.asarray(column, np.float64) for name, column in ways.items()}
    lengths = {len(column) for column in columns.values()} or {1}
    if len(lengths) > 1:
        raise EconomicsError(f"the ways were asked {sorted(lengths)} problems; ask all of them the same")
    if human is not None:
        columns[HUMAN] = np.full(lengths.pop(), float(human))
    if not columns:
        raise EconomicsError("no way of answering is left; give at least one, or the cost of a human expert")
    table, names = np.stack(list(columns.values())), list(columns)
    values = table.min(axis=0)
    best = [names[i] if math.isfinite(v) else None for i, v in zip(table.argmin(axis=0), values, strict=True)]
    return Frontier(values, tuple(best))


def gain(
    ways: Mapping[str, ArrayLike], new: str | Iterable[str], human: float | None = None, seed: int = 0
) -> Interval:
    """USD a problem that the frontier falls by through `new`, one way or a family of them: V(rest) - V(all)."""
    rest, every = _without(ways, new, human)
    return paired_bootstrap(rest - every, bounded=False, seed=seed)


def essentialness(
    ways: Mapping[str, ArrayLike], family: str | Iterable[str], human: float | None = None, seed: int = 0
) -> Interval:
    """The gain of a family as a share of the frontier without it."""
    rest, every = _without(ways, family, human)
    return ratio_bootstrap(every, rest, seed=seed)


def _without(ways: Mapping[str, ArrayLike], taken: str | Iterable[str], human: float | None) -> tuple[Array, Array]:
    """The finite frontiers [questions] without some of the ways, and with all."""
    names = {taken} if isinstance(taken, str) else set(taken)
    for name in names - set(ways):
        raise unknown("way of answering", name, ways)
    every = frontier(ways, human).values
    rest = frontier({name: column for name, column in ways.items() if name not in names}, human).values
    return np.broadcast_to(_finite(rest), every.shape), every


def _finite(values: Array) -> Array:
    if lost := int(np.isinf(values).sum()):
        raise EconomicsError(
            f"on {lost} of {len(values)} problems nobody passes, so the cost is infinite; "
            f"give the cost of a human expert, or smooth with prior={HALF}"
        )
    return values
