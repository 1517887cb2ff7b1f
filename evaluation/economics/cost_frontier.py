"""The frontier of cost-of-pass, and what a model adds to it (Cost-of-Pass, arXiv 2504.13359).

The unit is the problem: each model has a cost-of-pass on each problem, the frontier takes the cheapest, a human expert
included, and a data set's frontier is the mean over its problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ...errors import TerselyError, unknown
from ..stats import Array, Interval, paired_bootstrap, ratio_bootstrap

HUMAN = "human expert"


class EconomicsError(TerselyError, ValueError):
    """Costs that do not fit together, or an infinite cost where a finite one is needed."""

    code = "invalid_costs"


def costs_of_pass(costs: ArrayLike, passes: ArrayLike) -> Array:
    """Compute the cost-of-pass of each problem: two arrays [questions, runs] or [questions] -> [questions].

    That is the mean cost of a run by its mean success, infinite where nothing passed.
    """
    cost, right = np.asarray(costs, np.float64), np.asarray(passes, np.float64)
    if cost.shape != right.shape:
        message = f"costs have the shape {cost.shape} and passes {right.shape}; accepted: the same shape"
        raise EconomicsError(message, code="shape_mismatch")
    cost, right = cost.reshape(len(cost), -1), right.reshape(len(right), -1)
    rate = right.mean(axis=1)
    values: Array = np.divide(cost.mean(axis=1), rate, out=np.full(len(cost), math.inf), where=rate > 0)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The lowest cost-of-pass of each problem, and which model has it (None if every model fails)."""

    values: Array
    best: tuple[str | None, ...]


def frontier(models: Mapping[str, ArrayLike], human: float | None = None) -> Frontier:
    """Compute the frontier of models, each with its cost-of-pass [questions], and of an expert.

    The expert takes `human` USD a problem, and without models stands alone on one that represents all of them.
    """
    columns = {name: np.asarray(column, np.float64) for name, column in models.items()}
    lengths = {len(column) for column in columns.values()} or {1}
    if len(lengths) > 1:
        message = f"the models have different numbers of problems ({sorted(lengths)}); accepted: the same problems"
        raise EconomicsError(message, code="shape_mismatch")
    if human is not None:
        columns[HUMAN] = np.full(lengths.pop(), float(human))
    if not columns:
        raise EconomicsError("models are empty; pass at least one, or the cost of a human expert", code="no_models")
    table, names = np.stack(list(columns.values())), list(columns)
    values = table.min(axis=0)
    best = [names[i] if math.isfinite(v) else None for i, v in zip(table.argmin(axis=0), values, strict=True)]
    return Frontier(values, tuple(best))


def gain(models: Mapping[str, ArrayLike], new: str, human: float | None = None, seed: int = 0) -> Interval:
    """Compute the USD per problem by which the model `new` lowers the frontier."""
    without, complete = _compare_frontiers(models, new, human)
    return paired_bootstrap(without - complete, bounded=False, seed=seed)


def essentialness(models: Mapping[str, ArrayLike], name: str, human: float | None = None, seed: int = 0) -> Interval:
    """Compute the gain of a model as a share of the frontier without it."""
    without, complete = _compare_frontiers(models, name, human)
    return ratio_bootstrap(complete, without, seed=seed)


def _compare_frontiers(models: Mapping[str, ArrayLike], name: str, human: float | None) -> tuple[Array, Array]:
    """Return the finite frontiers, [questions], without a model and with all of them."""
    if name not in models:
        raise unknown("model", name, models)
    complete = frontier(models, human).values
    without = frontier({other: column for other, column in models.items() if other != name}, human).values
    return np.broadcast_to(_check_finite(without), complete.shape), complete


def _check_finite(values: Array) -> Array:
    if infinite := int(np.isinf(values).sum()):
        message = (
            f"no model passes {infinite} of {len(values)} problems, so the cost is infinite; "
            "add the cost of a human expert"
        )
        raise EconomicsError(message, code="infinite_cost")
    return values
