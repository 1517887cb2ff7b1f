"""A paired comparison: every arm answered the same questions with the same seeds, and every token counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..stats import (
    Interval,
    lower_bound,
    mcnemar,
    paired_bootstrap,
    rate_interval,
    ratio_bootstrap,
    studentized_bootstrap,
    upper_bound,
)
from .fairness import check_comparable
from .records import KINDS, OVERHEADS, ArmRecords, BenchRow
from .verdict import judge


def compare(records: Sequence[ArmRecords], margin: float, seed: int) -> dict[str, Any]:
    """The `arms`, `verdict` and `needed_n` of the result; the first arm is the baseline, the second is judged.

    Raises CheckError if the arms were not asked the same questions in the same order, or tokens are missing.
    """
    check_comparable(records)
    base, judged = records[0], records[1]
    accuracy, tokens = (judged.means(kind) - base.means(kind) for kind in ("right", "total"))
    arms = [summary(r, None if r is base else base, seed) for r in records]
    found = judge(accuracy, _interval(arms[1], "delta_accuracy"), tokens, _interval(arms[1], "delta_total"), margin)
    return {
        "arms": arms,
        "verdict": found.word,
        "needed_n": found.needed_n,
        "judged": judged.arm,
        "baseline": base.arm,
    }


def _interval(arm: Mapping[str, Any], name: str) -> Interval:
    return Interval(arm[name], *arm[f"{name}_ci"])


def summary(ours: ArmRecords, base: ArmRecords | None, seed: int) -> dict[str, Any]:
    """One arm's entry: tokens are means of one generation, deltas are ours minus the baseline (None for itself)."""
    right = ours.means("right")
    n = len(right)
    return {
        "name": ours.arm,
        "kind": "cut" if ours.cut else "run",
        "setting": ours.setting,
        "n": n,
        "accuracy": float(right.mean()),
        "accuracy_ci": pair(rate_interval(ours.column("right"))),
        "tokens": {kind: _mean(ours, kind) for kind in KINDS},
        "overhead": {kind: _mean(ours, kind) for kind in OVERHEADS},
        "forced": _mean(ours, "forced"),
        "prompt": _mean(ours, "prompt"),
        **(dict.fromkeys(_PAIRED) if base is None else _paired(ours, base, seed)),
        "seconds": ours.seconds,
        "capped": _mean(ours, "capped"),
        "unanswered": sum(row.outcome == "unparsable" for row in ours.rows) / len(ours.rows),
        "per_level": _cells(ours, lambda row: row.level),
        "per_tier": _cells(ours, lambda row: row.tier),
    }


_PAIRED = (
    "delta_accuracy",
    "delta_accuracy_ci",
    "delta_total",
    "delta_total_ci",
    "harm",
    "harm_upper",
    "help",
    "help_lower",
    "mcnemar_p",
    "saving",
    "saving_ci",
)


def _paired(ours: ArmRecords, base: ArmRecords, seed: int) -> Mapping[str, Any]:
    right, was_right = ours.column("right"), base.column("right")
    total, was_total = ours.column("total"), base.column("total")
    accuracy = paired_bootstrap(right - was_right, seed=seed)
    tokens = studentized_bootstrap(total - was_total, seed=seed)
    saving = ratio_bootstrap(total, was_total, seed=seed)
    harms, helps = (both.mean(axis=1) for both in (was_right * (1 - right), right * (1 - was_right)))
    values = (
        accuracy.estimate,
        pair(accuracy),
        tokens.estimate,
        pair(tokens),
        float(harms.mean()),
        upper_bound(float(harms.sum()), len(harms)),
        float(helps.mean()),
        lower_bound(float(helps.sum()), len(helps)),
        mcnemar(right - was_right),
        saving.estimate,
        pair(saving),
    )
    return dict(zip(_PAIRED, values, strict=True))


def _cells(records: ArmRecords, key: Callable[[BenchRow], int | str | None]) -> dict[str, dict[str, float]]:
    """Accuracy and tokens of the rows of each level or tier."""
    out = {}
    for value in sorted({key(row) for row in records.rows} - {None}, key=str):
        rows = [row for row in records.rows if key(row) == value]
        out[str(value)] = {
            "n": len({row.id for row in rows}),
            "accuracy": sum(row.right for row in rows) / len(rows),
            "thinking": sum(row.thinking for row in rows) / len(rows),
            "total": sum(row.total for row in rows) / len(rows),
        }
    return out


def _mean(records: ArmRecords, name: str) -> float:
    return float(records.column(name).mean())


def pair(interval: Interval) -> list[float]:
    """The ends of an interval in JSON form."""
    return [interval.low, interval.high]
