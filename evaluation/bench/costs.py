"""What an arm costs beyond its tokens: E3, FLOPs, US dollars, and dollars per right answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...errors import ModelError
from ..economics.cost_metrics import cost_of_pass, e3
from ..economics.flops import ModelShape, generation_flops, load_shape
from ..economics.prices import Price, Prices
from .arms import HELPER
from .records import ArmRecords, BenchRow, Weights


@dataclass(frozen=True, slots=True)
class CostModel:
    """The model and, if there is one, the helper as FLOPs and prices see them; None where that is not known."""

    shape: ModelShape | None = None
    price: Price | None = None
    helper_shape: ModelShape | None = None
    helper_price: Price | None = None
    verifier_shape: ModelShape | None = None

    def helper_weight(self) -> float | None:
        """What a token of the helper weighs in tokens of the model: by price, or else by the FLOPs of decoding one."""
        if self.price and self.helper_price and self.price.output:
            return self.helper_price.output / self.price.output
        return self._flops_of(self.helper_shape)

    def _flops_of(self, other: ModelShape | None) -> float | None:
        """FLOPs of a token of another model in those of one of the model."""
        if self.shape and other:
            return (other.blocks + other.head) / (self.shape.blocks + self.shape.head)
        return None

    def weights(self) -> Weights:
        """What tokens weigh where they are added up; those read instead of written weigh less only by price."""
        own, other = self.price, self.helper_price
        read = own.prompt / own.output if own and own.output else 1.0
        helper = 1.0 if (weight := self.helper_weight()) is None else weight
        consulted = other.prompt / own.output if own and own.output and other else helper
        verifier = 1.0 if (weight := self._flops_of(self.verifier_shape)) is None else weight
        return Weights(helper=helper, consulted=consulted, verifier=verifier, reprefilled=read)

    def of(self, records: ArmRecords) -> dict[str, Any]:
        """The `e3`, `flops`, `usd` and `cost_of_pass` of an arm, means of one generation; None where not known."""
        right = records.means("right")
        shape, price = (self.helper_shape, self.helper_price) if records.arm == HELPER else (self.shape, self.price)
        usd = None if price is None else [price.cost(row.prompt, self._paid(row)) for row in records.rows]
        dear = math.inf if usd is None else cost_of_pass(usd, [float(row.right) for row in records.rows])
        return {
            "e3": e3(float(right.mean()), records.total()),
            "flops": None if shape is None else fmean(self._flops(shape, row) for row in records.rows),
            "usd": None if usd is None else fmean(usd),
            "cost_of_pass": dear if math.isfinite(dear) else None,
        }

    def _flops(self, shape: ModelShape, row: BenchRow) -> float:
        """FLOPs of a generation; tokens of other models count as so many of the model's own, as one where unknown."""
        written = row.thinking + row.answer_tokens + row.discarded + row.probe + row.reprefilled
        helped = (self._flops_of(self.helper_shape) or 1.0) * (row.delegated + row.consulted)
        verified = (self._flops_of(self.verifier_shape) or 1.0) * row.verifier
        return generation_flops(shape, row.prompt, written + round(helped + verified))

    def _paid(self, row: BenchRow) -> float:
        """Output tokens at the price of whoever wrote them; the total is weighted to the model's own."""
        return row.thinking + row.answer_tokens if row.arm == HELPER else row.total


def shape_or_note(model: str, notes: list[str]) -> ModelShape | None:
    """The model's shape; None, and a note that says why, where its FLOPs are not known."""
    try:
        return load_shape(model)
    except ModelError as error:
        notes.append(f"FLOPs are left out: {error}")
        return None


def load_cost_model(
    model: str,
    helper: str | None,
    prices: Prices,
    price: str | None = None,
    helper_price: str | None = None,
    verifier: str | None = None,
) -> tuple[CostModel, list[str]]:
    """What can be known of a model, its helper and its verifier, and notes on what cannot; prices go by their names.

    Raises OptionError for a name without a price.
    """
    notes: list[str] = []
    economy = CostModel(
        shape_or_note(model, notes),
        None if price is None else prices.get(price),
        None if helper is None else shape_or_note(helper, notes),
        None if helper_price is None else prices.get(helper_price),
        None if verifier is None else shape_or_note(verifier, notes),
    )
    if helper is not None and economy.helper_weight() is None:
        notes.append("A token of the helper weighs as much as one of the model: neither prices nor FLOPs are known.")
    return economy, notes
