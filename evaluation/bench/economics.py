"""Economics of all arms together: the frontier of cost-of-pass, idealized seconds, and the ceiling of resampling.

Each figure is left out where it cannot be known, and a note says what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...controller.sampling.resampling import ProblemClass, ceiling, estimate_rates, optimal_attempts
from ...errors import OptionError
from ..economics.cost_frontier import HUMAN, EconomicsError, costs_of_pass, essentialness, frontier, gain
from ..economics.latency import RuntimeModel, TimingError, fit_runtime
from ..stats import paired_bootstrap
from .arms import HELPER
from .costs import CostModel
from .records import ArmRecords
from .truncation import Recording

SURE = 0.95
"""A trial answer of at least this confidence passes, where its confidence is taken for a verifier."""
PENALTIES = (1, 4)
"""What a wrong answer that passes costs, where a right one earns 1."""
_ARM = ("gain", "gain_ci", "essentialness", "essentialness_ci", "ideal_seconds", "ideal_usd")


def measure_economics(
    records: Sequence[ArmRecords], recordings: Sequence[Recording], costs: CostModel, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
    """The figures of each arm, those of the result, and notes on what is left out."""
    arms: dict[str, dict[str, Any]] = {one.arm: dict.fromkeys(_ARM) for one in records}
    found, notes = _measure_frontier([one for one in records if not one.truncated], costs, seed)
    for name, figures in found.pop("arms", {}).items():
        arms[name] |= figures
    runtime, problems = find_runtime(records, costs)
    notes += problems
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
        figures[name] = {
            "gain": fall.estimate,
            "gain_ci": [fall.low, fall.high],
            "essentialness": share.estimate,
            "essentialness_ci": [share.low, share.high],
        }
    found = {
        "arms": figures,
        "usd": interval.estimate,
        "usd_ci": [interval.low, interval.high],
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


def find_runtime(records: Sequence[ArmRecords], costs: CostModel) -> tuple[RuntimeModel | None, list[str]]:
    """The runtime of a generation: the caller's, else fitted to the generations of this run that ran alone."""
    if costs.runtime is not None:
        return costs.runtime, []
    timings = [timing for one in records if _runs_alone(one) for timing in one.timings]
    if not timings:
        return None, []
    try:
        return fit_runtime(timings), []
    except TimingError as error:
        return None, [f"Idealized seconds are left out: {error}"]


def _runs_alone(records: ArmRecords) -> bool:
    """Whether no other model than the benchmark's has a part in an arm."""
    others = ("verifier", "delegated", "consulted")
    return records.arm != HELPER and not any(getattr(row, kind) for row in records.rows for kind in others)


def measure_ceiling(base: ArmRecords, recordings: Sequence[Recording]) -> tuple[dict[str, Any] | None, list[str]]:
    """The accuracy that resampling cannot exceed, if an answer counts once its trial answer is confident.

    Rates of the verifier are those of the trial answers after the last thought, and kinds of problems are the levels.
    """
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
