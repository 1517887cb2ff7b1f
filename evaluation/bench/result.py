"""The figures of a benchmark's result, from running all arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..stats import area, common_range, iso_saving, reliability
from .arms import Arm, Bench, check_comparable, run_arm
from .compare import compare
from .counterfactual import Counterfactual
from .economics import measure_economics
from .plan import BenchPlan
from .records import ArmRecords
from .truncation import Recording


def measure(plan: BenchPlan, bench: Bench) -> tuple[dict[str, Any], list[ArmRecords]]:
    """Run all arms; returns the result's figures and all rows. Raises CheckError if the comparison is not fair."""
    records = [run_arm(bench, arm) for arm in plan.arms]
    check_comparable(records)
    if not plan.options.baselines or not any(row.thinking for row in records[0].rows):
        return assemble(plan, records, [], []), records
    counterfactual = Counterfactual(bench, plan.arms[0])
    controlled = [one for one, arm in zip(records, plan.arms, strict=True) if arm.controlled]
    records += [*counterfactual.equal_budgets(controlled), *counterfactual.baselines(records[1].mean("total"))]
    return assemble(plan, records, counterfactual.curve(), counterfactual.recordings), records


def assemble(
    plan: BenchPlan,
    records: Sequence[ArmRecords],
    curve: Sequence[tuple[int, ArmRecords]],
    recordings: Sequence[Recording],
) -> dict[str, Any]:
    """The result's figures: all arms, the verdict, the fixed-budget curve and what is derived from it."""
    costs, seed = plan.costs, plan.options.seed
    result = compare(records, plan.options.margin, seed)
    points = [*(one for _, one in curve), records[0]]  # the curve ends with the uncontrolled arm
    tokens, right = ([one.means(kind) for one in points] for kind in ("total", "right"))
    for entry, arm in zip(result["arms"], records, strict=True):
        entry |= {"iso_saving": None, "iso_saving_ci": None, **costs.measure(arm)}
        if curve and arm is not records[0]:
            entry |= iso_saving(tokens, right, arm.means("total"), arm.means("right"), seed=seed)
    arms, economics, notes = measure_economics(records, recordings, costs, seed)
    for entry in result["arms"]:
        entry |= arms[entry["name"]]
    trials = [trial for recording in recordings for trial in recording.trials]
    return {
        **result,
        **economics,
        "notes": notes,
        "budget_curve": [
            {"budget": budget, "accuracy": float(one.means("right").mean()), "total": one.mean("total")}
            for budget, one in curve
        ],
        "auc": _areas(curve, [arm for arm in records if not arm.truncated], plan.arms),
        "calibration": reliability([t.confidence for t in trials], [t.right for t in trials]) if trials else None,
    }


def _areas(
    curve: Sequence[tuple[int, ArmRecords]], records: Sequence[ArmRecords], arms: Sequence[Arm]
) -> dict[str, float] | None:
    """Accuracy over log tokens, for fixed budgets and for the controlled arms, over their common range."""
    controlled = {arm.name for arm in arms if arm.controlled} | {records[0].arm}
    fixed = [(one.mean("total"), float(one.means("right").mean())) for _, one in curve]
    ours = [(arm.mean("total"), float(arm.means("right").mean())) for arm in records if arm.arm in controlled]
    if len(fixed) < 2 or len(ours) < 2:
        return None
    ends = common_range(fixed, ours)
    if ends is None:
        return None
    return {"fixed budget": area(fixed, *ends), "controlled": area(ours, *ends), "from": ends[0], "to": ends[1]}
