"""What arms cost beyond tokens: E3, FLOPs, dollars, seconds, the frontier of cost-of-pass, the resampling ceiling.

Each figure is left out where it cannot be known, and a note says what is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ...controller.sampling.resampling import ProblemClass, ceiling, estimate_rates, optimal_attempts
from ...errors import ModelError, OptionError
from ..economics.costs import (
    HUMAN,
    EconomicsError,
    Price,
    Prices,
    cost_of_pass,
    costs_of_pass,
    e3,
    essentialness,
    frontier,
    gain,
)
from ..economics.flops import ModelShape, generation_flops, load_shape
from ..economics.latency import RuntimeModel, TimingError, fit_runtime
from ..stats import paired_bootstrap
from .arms import HELPER
from .records import ArmRecords, BenchRow, Weights
from .truncation import Recording


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
    """The cost model, and notes on what is unknown; raises OptionError for a name without a price."""
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


SURE = 0.95  # a trial answer of at least this confidence passes, where its confidence is taken for a verifier
PENALTIES = (1, 4)  # what a wrong answer that passes costs, where a right one earns 1
_ARM = ("gain", "gain_ci", "essentialness", "essentialness_ci", "ideal_seconds", "ideal_usd")


def measure_economics(
    records: Sequence[ArmRecords], recordings: Sequence[Recording], costs: CostModel, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
    """The figures of each arm, those of the result, and notes on what is left out."""
    arms: dict[str, dict[str, Any]] = {one.arm: dict.fromkeys(_ARM) for one in records}
    found, notes = _measure_frontier([one for one in records if not one.truncated], costs, seed)
    for name, figures in found.pop("arms", {}).items():
        arms[name] |= figures
    runtime, timings = costs.runtime, [timing for one in records if _runs_alone(one) for timing in one.timings]
    if runtime is None and timings:
        try:
            runtime = fit_runtime(timings)
        except TimingError as error:
            notes.append(f"Idealized seconds are left out: {error}")
    for one in records:
        if runtime is not None and _runs_alone(one):
            seconds = float(np.mean([runtime.predict(row.read, row.decoded) for row in one.rows]))
            arms[one.arm]["ideal_seconds"] = seconds
            if costs.usd_per_hour is not None:
                arms[one.arm]["ideal_usd"] = seconds / 3600 * costs.usd_per_hour
    limit, problems = measure_ceiling(records[0], recordings)
    return arms, {"frontier": found or None, "ceiling": limit}, [*notes, *problems]


def _measure_frontier(records: Sequence[ArmRecords], costs: CostModel, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The frontier over arms, each taken for a model of the paper, and what each arm adds to it.

    Questions that no arm solves cost an infinite amount without an expert; they are counted and left out.
    """
    bills = {one.arm: usd for one in records if (usd := costs.bill(one)) is not None and any(usd)}
    if len(bills) < len(records):
        return {}, ["The frontier of costs is left out: not all arms have a price."] if bills else []
    models = {}
    for one in records:
        bill = np.array(bills[one.arm], np.float64).reshape(one.rollouts, -1).T
        models[one.arm] = costs_of_pass(bill, one.column("right"))
    edge = frontier(models, costs.expert_usd)
    solved = edge.values[np.isfinite(edge.values)]
    if not solved.size:
        return {}, ["The frontier of costs is left out: no arm is right on any question, and no expert has a price."]
    interval, chosen = paired_bootstrap(solved, bounded=False, seed=seed), Counter(edge.best)
    figures, alone = {}, []
    for name in models:
        try:
            fall, share = (measure(models, name, costs.expert_usd, seed) for measure in (gain, essentialness))
        except EconomicsError:
            alone.append(name)
            continue
        figures[name] = fall.named("gain") | share.named("essentialness")
    found = {
        "arms": figures,
        **interval.named("usd"),
        "expert_usd": costs.expert_usd,
        "unsolved": len(edge.values) - len(solved),
        "cheapest": {name: chosen[name] / len(edge.best) for name in (*models, HUMAN) if name in chosen},
    }
    if not alone:
        return found, []
    return found, [
        f"Gains of {', '.join(alone)} are left out: {found['unsolved'] or 'some'} question(s) that no other arm solves "
        "have no finite price; give an expert's with --expert-usd."
    ]


def _runs_alone(records: ArmRecords) -> bool:
    """Whether no other model than the benchmark's has a part in an arm."""
    others = ("verifier", "delegated", "consulted")
    return records.arm != HELPER and not any(getattr(row, kind) for row in records.rows for kind in others)


def measure_ceiling(base: ArmRecords, recordings: Sequence[Recording]) -> tuple[dict[str, Any] | None, list[str]]:
    """The accuracy that resampling cannot exceed, if an answer counts once its last trial answer is confident."""
    trials = [recording.trials[-1] for recording in recordings if recording.trials]
    if not trials:
        return None, []
    try:
        rates = estimate_rates([trial.confidence >= SURE for trial in trials], [trial.right for trial in trials])
    except OptionError as error:
        return None, [f"The ceiling of resampling is left out: {error}"]
    groups: dict[int | None, list[bool]] = {}
    for row in base.rows:
        groups.setdefault(row.level, []).append(row.right)
    kinds = [ProblemClass(len(right) / len(base.rows), sum(right) / len(right)) for right in groups.values()]
    reliable = rates.true_positive >= rates.false_positive
    attempts = {str(cost): optimal_attempts(kinds, rates, cost) if reliable else 0 for cost in PENALTIES}
    return {
        "confidence": SURE,
        "n": len(trials),
        "true_positive": rates.true_positive,
        "false_positive": rates.false_positive,
        "accuracy": ceiling(kinds, rates),
        "attempts": attempts,
    }, []
