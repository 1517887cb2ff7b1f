"""Prices of tokens: a small dated table of public list prices, over which a user lays their own."""

from __future__ import annotations

import datetime as dt
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import Field, NonNegativeFloat

from ...errors import OptionError, TerselyError, unknown
from ..stats import Array
from .strict import StrictRecord, parse, read_text

OURS = Path(__file__).with_name("prices.json")
_MILLION = 1e6

Tokens = TypeVar("Tokens", float, Array)


class PriceError(TerselyError, ValueError):
    """A price table cannot be used."""


class Price(StrictRecord):
    """What a model's tokens cost, in USD per million, and when and where that was read."""

    prompt: NonNegativeFloat
    output: NonNegativeFloat
    cached: NonNegativeFloat | None = None
    """Prompt tokens served from a cache; None: they cost as much as others."""
    as_of: dt.date
    source: str = "the user's own"

    def cost(self, prompt: Tokens, output: Tokens, cached: Tokens | None = None) -> Tokens:
        """USD of generations, numbers or arrays of them; `cached` are those of the prompt tokens that were cached."""
        if cached is None or self.cached is None:
            return (prompt * self.prompt + output * self.output) / _MILLION
        return ((prompt - cached) * self.prompt + cached * self.cached + output * self.output) / _MILLION


class Prices(StrictRecord):
    """Prices by the name of the model."""

    models: dict[str, Price] = Field(min_length=1)

    def of(self, model: str) -> Price:
        """The price of one model; raises OptionError for a model without one."""
        if model not in self.models:
            raise OptionError(f"{unknown('price of model', model, self.models)}; or give your own prices as a file")
        return self.models[model]


def load_prices(path: Path | None = None) -> Prices:
    """The table that is shipped, with the rows of a file of the same form, if given, over it; raises PriceError."""
    if path is None:
        return _shipped()
    own = parse(Prices, read_text(path, PriceError), str(path), PriceError)
    return Prices(models={**_shipped().models, **own.models})


@cache
def _shipped() -> Prices:
    return parse(Prices, read_text(OURS, PriceError), OURS.name, PriceError)
