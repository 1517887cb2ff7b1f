"""Costs of an arm beyond its tokens: E3, FLOPs, US dollars, and dollars per correct answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...errors import ModelError
from ..economics.costs import Price, Prices, cost_of_pass, e3
from ..economics.flops import ModelShape, generation_flops, load_shape
from ..economics.latency import RuntimeModel
from .arms import HELPER
from .records import ArmRecords, BenchRow, Weights


@dataclass(frozen=True, slots=True)
class CostModel:
    """Shapes and prices of the model, the helper and the verifier; None where unknown.

    `expert_usd` is what a human expert asks for a right answer, `runtime` the idealized seconds of a generation, and
    `usd_per_hour` the price of the machine that they are of.
    """

    shape: ModelShape | None = None
    price: Price | None = None
    helper_shape: ModelShape | None = None
    helper_price: Price | None = None
    verifier_shape: ModelShape | None = None
    expert_usd: float | None = None
    runtime: RuntimeModel | None = None
    usd_per_hour: float | None = None

    def helper_weight(self) -> float | None:
        """Cost of a helper token relative to one of the model: by price, else by the FLOPs of decoding one."""
        if self.price and self.helper_price and self.price.output:
            return self.helper_price.output / self.price.output
        return self._relative_flops(self.helper_shape)

    def _relative_flops(self, other: ModelShape | None) -> float | None:
        """FLOPs of another model's token relative to one of the model."""
        if self.shape and other:
            return (other.blocks + other.head) / (self.shape.blocks + self.shape.head)
        return None

    def weights(self) -> Weights:
        """Token weights for totals; tokens that are only read are cheaper only if prices say so."""
        own, other = self.price, self.helper_price
        read = own.prompt / own.output if own and own.output else 1.0
        helper = 1.0 if (weight := self.helper_weight()) is None else weight
        consulted = other.prompt / own.output if own and own.output and other else helper
        verifier = 1.0 if (weight := self._relative_flops(self.verifier_shape)) is None else weight
        return Weights(helper=helper, consulted=consulted, verifier=verifier, reprefilled=read)

    def measure(self, records: ArmRecords) -> dict[str, Any]:
        """The `e3`, `flops`, `usd` and `cost_of_pass` of an arm, as means per generation; None where unknown."""
        right = records.means("right")
        shape = self.helper_shape if records.arm == HELPER else self.shape
        usd = self.bill(records)
        per_pass = math.inf if usd is None else cost_of_pass(usd, [float(row.right) for row in records.rows])
        return {
            "e3": e3(float(right.mean()), records.mean("total")),
            "flops": None if shape is None else fmean(self._flops(shape, row) for row in records.rows),
            "usd": None if usd is None else fmean(usd),
            "cost_of_pass": per_pass if math.isfinite(per_pass) else None,
        }

    def bill(self, records: ArmRecords) -> list[float] | None:
        """USD of each generation of an arm; None without a price."""
        price = self.helper_price if records.arm == HELPER else self.price
        if price is None:
            return None
        # Output tokens are billed at the price of the model that wrote them; totals are already weighted.
        billed = [row.thinking + row.answer_tokens if row.arm == HELPER else row.total for row in records.rows]
        return [price.cost(row.prompt, tokens) for row, tokens in zip(records.rows, billed, strict=True)]

    def _flops(self, shape: ModelShape, row: BenchRow) -> float:
        """FLOPs of a generation; other models' tokens are converted to the model's own (1 to 1 if unknown)."""
        own = row.thinking + row.answer_tokens + row.discarded + row.probe + row.reprefilled
        helper = (self._relative_flops(self.helper_shape) or 1.0) * (row.delegated + row.consulted)
        verifier = (self._relative_flops(self.verifier_shape) or 1.0) * row.verifier
        return generation_flops(shape, row.prompt, own + round(helper + verifier))


def load_cost_model(
    model: str,
    helper: str | None,
    prices: Prices,
    price: str | None = None,
    helper_price: str | None = None,
    verifier: str | None = None,
) -> tuple[CostModel, list[str]]:
    """The cost model, and notes on what is unknown; prices are given by name.

    Raises OptionError for a name without a price.
    """
    notes: list[str] = []

    def read_shape(name: str | None) -> ModelShape | None:
        try:
            return None if name is None else load_shape(name)
        except ModelError as error:
            notes.append(f"FLOPs are left out: {error}")
            return None

    costs = CostModel(
        read_shape(model),
        None if price is None else prices.get(price),
        read_shape(helper),
        None if helper_price is None else prices.get(helper_price),
        read_shape(verifier),
    )
    if helper is not None and costs.helper_weight() is None:
        notes.append("Helper tokens count as much as the model's own: neither prices nor FLOPs are known.")
    return costs, notes
