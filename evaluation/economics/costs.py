"""Token prices, E3, and cost-of-pass with its frontier over models.

Prices come from a small, dated table of public list prices, which a user's own table extends or overrides. The unit of
a frontier is the problem: it takes the cheapest model of each, a human expert included (arXiv 2504.13359).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, NonNegativeFloat

from ...errors import OptionError, TerselyError, check_known, unknown
from ...validation import FrozenModel, parse_json, read_text
from ..stats import LEVEL, RESAMPLES, Array, Interval, paired_bootstrap, ratio_bootstrap, resampled_means

_DEFAULT_PRICES = Path(__file__).with_name("prices.json")


class PriceError(TerselyError, ValueError, code="invalid_prices"):
    """A price table cannot be used."""


class Price(FrozenModel):
    """The token prices of a model in USD per million, with the date and source of the quote."""

    prompt: NonNegativeFloat
    output: NonNegativeFloat
    cached: NonNegativeFloat | None = None
    """Prompt tokens served from a cache, for the reader: the engines measured here have none."""
    as_of: dt.date
    source: str = "the user's own"

    def cost(self, prompt: float, output: float) -> float:
        """Return the USD of one generation."""
        return (prompt * self.prompt + output * self.output) / 1e6


class Prices(FrozenModel):
    """Prices by model name."""

    models: dict[str, Price] = Field(min_length=1)

    def get(self, model: str) -> Price:
        """Return the price of a model; raises OptionError if it has none."""
        if model not in self.models:
            message = f"{unknown('price of model', model, self.models)}; or pass a file with your own prices"
            raise OptionError(message, code="unknown_name")
        return self.models[model]


def load_prices(path: Path | None = None) -> Prices:
    """Load the built-in table, extended or overridden by the models of a file of the same form; raises PriceError."""
    default = parse_json(Prices, read_text(_DEFAULT_PRICES, PriceError), _DEFAULT_PRICES.name, PriceError)
    if path is None:
        return default
    own = parse_json(Prices, read_text(path, PriceError), str(path), PriceError)
    return Prices(models={**default.models, **own.models})


def cost_of_pass(costs: Sequence[float], passes: Sequence[float]) -> float:
    """Divide the mean cost of a generation by its mean success (arXiv 2504.13359); infinite if nothing passed."""
    return float(costs_of_pass([costs], [passes])[0])


def set_cost_of_pass(
    costs: Sequence[float], passes: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Compute the cost-of-pass of a set with a bootstrap interval over questions; its ends may be infinite."""
    ratios = costs_of_pass(*resampled_means(np.array([costs, passes], np.float64).T, resamples, seed).T)
    # No interpolation, because the neighbours may both be infinite.
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Interval(cost_of_pass(costs, passes), float(low), float(high))


def e3(accuracy: float, tokens: float) -> float:
    """Compute E3 = A * (A / T), with A in percent and T the mean decoded tokens (Plan-and-Budget, arXiv 2505.16122).

    `accuracy` is a share from 0 to 1, and `tokens` include those of planners and verifiers. Report both values with the
    score: it depends on the scale of A, and doubling A counts for more than halving T.
    """
    if not tokens:
        return math.inf if accuracy else 0.0
    return (100 * accuracy) ** 2 / tokens


HUMAN = "human expert"


class EconomicsError(TerselyError, ValueError, code="invalid_costs"):
    """Costs that do not fit together, or an infinite cost where a finite one is needed."""


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
    passed: Array = np.divide(cost.mean(axis=1), rate, out=np.full(len(cost), math.inf), where=rate > 0)
    return passed


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The lowest cost-of-pass of each problem, and which model has it (None if every model fails)."""

    values: Array
    best: tuple[str | None, ...]


def frontier(models: Mapping[str, ArrayLike], human: float | None = None) -> Frontier:
    """Compute the frontier of models, each with its cost-of-pass [questions], and of an expert.

    The expert takes `human` USD a problem, and without models stands alone on one that represents all of them.
    """
    lengths = {len(np.atleast_1d(column)) for column in models.values()} or {1}
    if len(lengths) > 1:
        message = f"the models have different numbers of problems ({sorted(lengths)}); accepted: the same problems"
        raise EconomicsError(message, code="shape_mismatch")
    columns = {**models, **({} if human is None else {HUMAN: np.full(lengths.pop(), float(human))})}
    if not columns:
        raise EconomicsError("models are empty; pass at least one, or the cost of a human expert", code="no_models")
    table, names = np.array([*columns.values()], np.float64), list(columns)
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
    check_known("model", name, models)
    complete = frontier(models, human).values
    without = frontier({other: column for other, column in models.items() if other != name}, human).values
    if infinite := int(np.isinf(without).sum()):
        message = f"no model passes {infinite} of {len(without)} problems; add the cost of a human expert"
        raise EconomicsError(message, code="infinite_cost")
    return np.broadcast_to(without, complete.shape), complete
