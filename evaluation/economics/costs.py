"""Token prices, and two metrics of cost: cost-of-pass and E3.

Prices come from a small, dated table of public list prices, which a user's own table extends or overrides.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from pydantic import Field, NonNegativeFloat

from ...errors import OptionError, TerselyError, unknown
from ...validation import FrozenModel, parse_json, read_text
from ..stats import LEVEL, RESAMPLES, Interval, resampled_means

_DEFAULT_PRICES = Path(__file__).with_name("prices.json")


class PriceError(TerselyError, ValueError):
    """A price table cannot be used."""

    code = "invalid_prices"


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
    rate = fmean(passes)
    return fmean(costs) / rate if rate else math.inf


def set_cost_of_pass(
    costs: Sequence[float], passes: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Compute the cost-of-pass of a set with a bootstrap interval over questions; its ends may be infinite."""
    table = np.array([costs, passes], np.float64).T
    cost, right = resampled_means(table, resamples, seed).T
    ratios = np.divide(cost, right, out=np.full_like(cost, math.inf), where=right > 0)
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
