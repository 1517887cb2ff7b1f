"""Token prices, and metrics of cost: cost-of-pass and its frontier, E3, and WebLeaper's two scores of a search.

Prices come from a small, dated table of public list prices, which a user's own table extends or overrides.

Cost-of-pass (arXiv 2504.13359) is what a right answer costs. The unit is the problem: each model or arm has a
cost-of-pass on each problem, the frontier takes the cheapest, and a data set's frontier is the mean over its problems.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, NonNegativeFloat

from ...errors import OptionError, TerselyError, unknown
from ...validation import FrozenModel, parse_json, read_text
from ..stats import Array, Interval, paired_bootstrap, question_means, ratio_bootstrap, resampled_means

_DEFAULT_PRICES = Path(__file__).with_name("prices.json")
_MILLION = 1e6

Tokens = TypeVar("Tokens", float, Array)


class PriceError(TerselyError, ValueError):
    """A price table cannot be used."""

    code = "invalid_prices"


class Price(FrozenModel):
    """The token prices of a model in USD per million, with the date and source of the quote."""

    prompt: NonNegativeFloat
    output: NonNegativeFloat
    cached: NonNegativeFloat | None = None
    """Prompt tokens served from a cache; None if they cost as much as other prompt tokens."""
    as_of: dt.date
    source: str = "the user's own"

    def cost(self, prompt: Tokens, output: Tokens, cached: Tokens | None = None) -> Tokens:
        """Return the USD of one generation, or of an array of them; `cached` tokens are part of `prompt`."""
        if cached is None or self.cached is None:
            return (prompt * self.prompt + output * self.output) / _MILLION
        return ((prompt - cached) * self.prompt + cached * self.cached + output * self.output) / _MILLION


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
    default = _load_default()
    if path is None:
        return default
    own = parse_json(Prices, read_text(path, PriceError), str(path), PriceError)
    return Prices(models={**default.models, **own.models})


@cache
def _load_default() -> Prices:
    return parse_json(Prices, read_text(_DEFAULT_PRICES, PriceError), _DEFAULT_PRICES.name, PriceError)


# -- cost-of-pass ------------------------------------------------------------------------------------------------------

HUMAN = "human expert"
EXPERT_USD: Mapping[str, float] = {"AIME": 20.0, "GPQA": 58.0}
"""USD that the paper pays an expert per problem. The expert is always right, so this is also the cost-of-pass."""


class EconomicsError(TerselyError, ValueError):
    """Costs that do not fit together, or an infinite cost where a finite one is needed."""

    code = "invalid_costs"


def cost_of_pass(costs: ArrayLike, passes: ArrayLike, prior: float = 0.0) -> float:
    """Divide the mean cost of a generation by its mean success; infinite if nothing passed.

    For the runs of one problem this is the paper's v(m, p); for a whole set it is the cost of a right answer in it.
    `prior` is a number of successes and of failures to add, so that a problem that never passed gets a bound instead of
    infinity; 0.5 is add-half smoothing.
    """
    cost, right = _check_shapes(costs, passes)
    if not cost.size:
        raise EconomicsError("costs are empty; pass at least one run", code="empty_costs")
    rate = (float(right.sum()) + prior) / (right.size + 2 * prior)
    return float(cost.mean()) / rate if rate else math.inf


def costs_of_pass(costs: ArrayLike, passes: ArrayLike, prior: float = 0.0) -> Array:
    """Compute the cost-of-pass of each problem: two arrays [questions, runs] or [questions] -> [questions]."""
    cost, right = _check_shapes(costs, passes)
    return np.array([cost_of_pass(c, r, prior) for c, r in zip(cost, right, strict=True)])


def _check_shapes(costs: ArrayLike, passes: ArrayLike) -> tuple[Array, Array]:
    cost, right = np.asarray(costs, np.float64), np.asarray(passes, np.float64)
    if cost.shape != right.shape:
        message = f"costs have the shape {cost.shape} and passes {right.shape}; accepted: the same shape"
        raise EconomicsError(message, code="shape_mismatch")
    return cost, right


def set_cost_of_pass(
    costs: ArrayLike, passes: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Compute the cost-of-pass of a set with a bootstrap interval over questions; its ends may be infinite."""
    table = np.stack([question_means(costs), question_means(passes)], axis=1)
    cost, right = resampled_means(table, resamples, seed).T
    ratios = np.divide(cost, right, out=np.full_like(cost, math.inf), where=right > 0)
    # No interpolation, because the neighbours may both be infinite.
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(cost_of_pass(costs, passes), float(low), float(high))


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The lowest cost-of-pass of each problem, and which model has it (None if every model fails)."""

    values: Array
    best: tuple[str | None, ...]

    @property
    def mean(self) -> float:
        """The data set's frontier cost-of-pass; infinite if one problem's is."""
        return float(self.values.mean())

    def interval(self, seed: int = 0) -> Interval:
        """Return the mean with a bootstrap interval over problems; raises EconomicsError if it is infinite."""
        return paired_bootstrap(_check_finite(self.values), bounded=False, seed=seed)

    def by_set(self, sets: Sequence[str]) -> dict[str, float]:
        """Return the mean of each set, given the name of the set that each problem belongs to."""
        if len(sets) != len(self.values):
            message = f"got {len(sets)} set names for {len(self.values)} problems; pass one for each"
            raise EconomicsError(message, code="shape_mismatch")
        names = np.array(sets)
        return {name: float(self.values[names == name].mean()) for name in dict.fromkeys(sets)}


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


def gain(
    models: Mapping[str, ArrayLike], new: str | Iterable[str], human: float | None = None, seed: int = 0
) -> Interval:
    """Compute the USD per problem by which `new`, a model or a family of them, lowers the frontier."""
    without, complete = _compare_frontiers(models, new, human)
    return paired_bootstrap(without - complete, bounded=False, seed=seed)


def essentialness(
    models: Mapping[str, ArrayLike], family: str | Iterable[str], human: float | None = None, seed: int = 0
) -> Interval:
    """Compute the gain of a family as a share of the frontier without it."""
    without, complete = _compare_frontiers(models, family, human)
    return ratio_bootstrap(complete, without, seed=seed)


def _compare_frontiers(
    models: Mapping[str, ArrayLike], family: str | Iterable[str], human: float | None
) -> tuple[Array, Array]:
    """Return the finite frontiers, [questions], without a family and with all models."""
    names = {family} if isinstance(family, str) else set(family)
    for name in names - set(models):
        raise unknown("model", name, models)
    complete = frontier(models, human).values
    without = frontier({name: column for name, column in models.items() if name not in names}, human).values
    return np.broadcast_to(_check_finite(without), complete.shape), complete


def _check_finite(values: Array) -> Array:
    if infinite := int(np.isinf(values).sum()):
        message = (
            f"no model passes {infinite} of {len(values)} problems, so the cost is infinite; "
            "add the cost of a human expert, or smooth with prior=0.5"
        )
        raise EconomicsError(message, code="infinite_cost")
    return values


def e3(accuracy: float, tokens: float) -> float:
    """Compute E3 = A * (A / T), with A in percent and T the mean decoded tokens (Plan-and-Budget, arXiv 2505.16122).

    `accuracy` is a share from 0 to 1, and `tokens` include those of planners and verifiers. Report both values with the
    score: it depends on the scale of A, and doubling A counts for more than halving T.
    """
    if not 0 <= accuracy <= 1:
        raise OptionError(f"accuracy is {accuracy}; accepted: a share from 0 to 1")
    if not tokens >= 0:
        raise OptionError(f"tokens is {tokens}; accepted: 0 or more")
    if not tokens:
        return math.inf if accuracy else 0.0
    return (100 * accuracy) ** 2 / tokens


@dataclass(frozen=True, slots=True)
class SearchScore:
    """The scores of a search for entities (WebLeaper, arXiv 2510.24697); `obtained` are those on the visited pages."""

    required: frozenset[Hashable]
    obtained: frozenset[Hashable]
    steps: int

    def __post_init__(self) -> None:
        if not self.required:
            raise OptionError("no entity is required; accepted: at least one")
        if self.steps < 1:
            raise OptionError(f"steps is {self.steps}; accepted: 1 or more")

    @property
    def isr(self) -> float:
        """Information-seeking rate: the share of the required entities that was found."""
        return len(self.required & self.obtained) / len(self.required)

    @property
    def ise(self) -> float:
        """Information-seeking efficiency: required entities found per step.

        Sources disagree on whether to count the required entities or those found. Only the latter does not reward
        giving up early. The variance falls as 1/n, so use tasks with many entities.
        """
        return len(self.required & self.obtained) / self.steps


def duplicate_rate(actions: Sequence[Hashable]) -> float:
    """Compute the share of actions that repeat an earlier one, a score that needs no labelled entities."""
    return 1 - len(set(actions)) / len(actions) if actions else 0.0
