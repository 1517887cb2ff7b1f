"""Token prices: a small, dated table of public list prices, which a user's own table extends or overrides."""

from __future__ import annotations

import datetime as dt
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import Field, NonNegativeFloat

from ...errors import OptionError, TerselyError, unknown
from ...validation import FrozenModel, parse_json, read_text
from ..stats import Array

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
