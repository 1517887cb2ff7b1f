"""Paired comparison of arms: the verdict, each arm's figures, and the table for the terminal.

All arms answer the same questions with the same seeds, and every token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...controller.sampling.rules import Vote, tally
from ...controller.text.answers import normalize_answer
from ...io import render_text
from ...probes.stats import binomial_lower_bound, binomial_upper_bound
from .. import stats
from ..cli_utils import format_interval, format_table
from ..stats import Array, Interval, paired_bootstrap
from .arms import check_comparable
from .records import KINDS, OVERHEADS, ArmRecords, BenchRow, compare_markers, format_markers

MIN_QUESTIONS = 10  # fewer questions decide nothing: if their tokens happen to agree, the interval has no width
GOOD = "non-inferior and saving"
INFERIOR = "inferior"
WASTEFUL = "not saving"
OPEN = "inconclusive"
EXIT_CODES = {GOOD: 0, INFERIOR: 1, WASTEFUL: 1, OPEN: 2}

_PAIRED = (
    "delta_accuracy delta_accuracy_ci delta_total delta_total_ci harm harm_upper help help_lower mcnemar_p saving "
    "saving_ci"
).split()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict, and if it is inconclusive the number of questions that would decide it (None if unknown)."""

    word: str
    needed_n: int | None = None


def judge(accuracy: Array, accuracy_ci: Interval, tokens: Array, tokens_ci: Interval, margin: float) -> Verdict:
    """Judge per-question differences (ours minus baseline) by their intervals.

    The margin must be fixed before the run. `needed_n` is the number of questions at which the interval decides with a
    probability of 80 %, if the true difference is the observed one (observed gains in accuracy are not counted on).
    """
    few = len(accuracy) < MIN_QUESTIONS
    if few and not tokens.any():  # as many tokens on every question: nothing to save, however accurate
        return Verdict(OPEN, MIN_QUESTIONS)
    if accuracy_ci.high < -margin and not few:
        return Verdict(INFERIOR)
    if tokens_ci.low >= 0 and not few:
        return Verdict(WASTEFUL)
    needs: list[int | None] = [MIN_QUESTIONS] if few else []
    if accuracy_ci.low <= -margin:
        distance = abs(margin + min(accuracy_ci.estimate, 0.0))
        needs.append(stats.needed_questions(stats.smoothed_deviation(accuracy), distance))
    if tokens_ci.high >= 0:
        needs.append(stats.needed_questions(float(tokens.std()), abs(tokens_ci.estimate)))
    if not needs:
        return Verdict(GOOD)
    finite = [n for n in needs if n is not None]
    return Verdict(OPEN, max(*finite, len(accuracy) + 1) if len(finite) == len(needs) else None)


def compare(records: Sequence[ArmRecords], margin: float, seed: int) -> dict[str, Any]:
    """The `arms`, `verdict` and `needed_n` of a result; the first arm is the baseline, the second is judged.

    Raises CheckError if the arms did not answer the same questions in the same order, or tokens are not counted.
    """
    check_comparable(records)
    base, judged = records[0], records[1]
    accuracy, tokens = (judged.means(kind) - base.means(kind) for kind in ("right", "total"))
    arms = [summarize(r, None if r is base else base, seed) for r in records]
    intervals = [Interval(arms[1][name], *arms[1][f"{name}_ci"]) for name in ("delta_accuracy", "delta_total")]
    verdict = judge(accuracy, intervals[0], tokens, intervals[1], margin)
    return {
        "arms": arms,
        "verdict": verdict.word,
        "needed_n": verdict.needed_n,
        "judged": judged.arm,
        "baseline": base.arm,
    }


def summarize(ours: ArmRecords, base: ArmRecords | None, seed: int) -> dict[str, Any]:
    """One arm's figures: means per generation, and differences ours minus baseline (None for the baseline)."""
    right = ours.means("right")
    return {
        "name": ours.arm,
        "kind": "cut" if ours.truncated else "run",
        "setting": ours.setting,
        "n": len(right),
        **stats.rate_interval(ours.column("right")).named("accuracy"),
        "tokens": {kind: ours.mean(kind) for kind in KINDS},
        "overhead": {kind: ours.mean(kind) for kind in OVERHEADS},
        "forced": ours.mean("forced"),
        "prompt": ours.mean("prompt"),
        **(dict.fromkeys(_PAIRED) if base is None else _paired(ours, base, seed)),
        "seconds": ours.seconds,
        "capped": ours.mean("capped"),
        "unanswered": sum(row.outcome == "unparsable" for row in ours.rows) / len(ours.rows),
        "markers": compare_markers((r.right, r.markers) for r in ours.rows if r.words),
        "votes": measure_votes(ours, seed),
        "per_level": _group(ours, lambda row: row.level),
        "per_tier": _group(ours, lambda row: row.tier),
    }


def measure_votes(records: ArmRecords, seed: int) -> dict[str, Any] | None:
    """The `accuracy` of a majority of P = 1, 2, 4, ... rollouts, and the least-squares fit a + b log2 P to it.

    `single` is a, `per_doubling` is b with its bootstrap interval over questions; None for a single rollout. That gains
    grow as log P is the shape that ParScale (arXiv 2505.10475) finds for P parallel streams.
    """
    sizes = [2**power for power in range(records.rollouts.bit_length())]
    if len(sizes) < 2:
        return None
    questions = len(records.rows) // records.rollouts
    accuracy = np.array([[_vote(records.rows[i::questions], size) for size in sizes] for i in range(questions)])
    powers = np.arange(len(sizes)) - (len(sizes) - 1) / 2
    weights = powers / (powers @ powers)  # a slope is a weighted sum, so that its mean is that of the questions'
    most = float(weights[weights > 0].sum())  # the slope of a question that more samples turn from wrong to right
    slope = paired_bootstrap(accuracy @ weights / most, seed=seed)
    slope = Interval(most * slope.estimate, most * slope.low, most * slope.high)
    return {
        "accuracy": {str(size): float(mean) for size, mean in zip(sizes, accuracy.mean(axis=0), strict=True)},
        "single": float(accuracy.mean() + powers[0] * slope.estimate),
        **slope.named("per_doubling"),
    }


def _vote(rollouts: Sequence[BenchRow], size: int) -> float:
    """How often the majority of `size` rollouts in a row, as on a circle, is right; ties go to the first of them."""
    right = 0
    for start in range(len(rollouts)):
        voters = [*rollouts[start:], *rollouts[:start]][:size]
        leader = next(iter(tally(Vote(row.rollout, row.answer) for row in voters)), None)
        right += any(row.right and normalize_answer(row.answer) == leader for row in voters)
    return right / len(rollouts)


def _paired(ours: ArmRecords, base: ArmRecords, seed: int) -> Mapping[str, Any]:
    right, was_right = ours.column("right"), base.column("right")
    total, was_total = ours.column("total"), base.column("total")
    harms, helps = (both.mean(axis=1) for both in (was_right * (1 - right), right * (1 - was_right)))
    n, delta = len(harms), 1 - stats.LEVEL
    return {
        **stats.paired_bootstrap(right - was_right, seed=seed).named("delta_accuracy"),
        **stats.studentized_bootstrap(total - was_total, seed=seed).named("delta_total"),
        "harm": float(harms.mean()),
        "harm_upper": binomial_upper_bound(float(harms.sum()), n, delta),
        "help": float(helps.mean()),
        "help_lower": binomial_lower_bound(float(helps.sum()), n, delta),
        "mcnemar_p": stats.mcnemar(right - was_right),
        **stats.ratio_bootstrap(total, was_total, seed=seed).named("saving"),
    }


def _group(records: ArmRecords, key: Callable[[BenchRow], int | str | None]) -> dict[str, dict[str, float]]:
    groups = {}
    for value in sorted({key(row) for row in records.rows} - {None}, key=str):
        rows = [row for row in records.rows if key(row) == value]
        groups[str(value)] = {
            "n": len({row.id for row in rows}),
            "accuracy": sum(row.right for row in rows) / len(rows),
            "thinking": sum(row.thinking for row in rows) / len(rows),
            "total": sum(row.total for row in rows) / len(rows),
        }
    return groups


_GAINS = ("arm", "right %", "Δ points [95% CI]", "saved % [95% CI]", "harm % (≤)", "help %")
_COSTS = ("arm", *KINDS, "iso-saved", "cut %", "no ans %", "seconds")
_ECONOMICS = {
    "E3": "e3",
    "$/1k": "usd",
    "$/1k right": "cost_of_pass",
    "gain $/1k": "gain",
    "ideal s": "ideal_seconds",
    "ideal $/1k": "ideal_usd",
}


def as_text(result: Mapping[str, Any]) -> str:
    """A benchmark's result and its verdict, with tables within 80 columns."""
    arms = result["arms"]
    shown = {head: name for head, name in _ECONOMICS.items() if any(arm.get(name) is not None for arm in arms)}
    economics = [[arm["name"], *(_amount(head, arm.get(name)) for head, name in shown.items())] for arm in arms]
    return render_text(
        Path(__file__).with_name("bench.txt"),
        **{"frontier": None, "ceiling": None, **result},
        gains=format_table(_GAINS, map(_gains, arms)),
        costs=format_table(_COSTS, map(_costs, arms)),
        economics=format_table(("arm", *shown), economics) if len(shown) > 1 else "",
        percent=_percent,
        format_markers=format_markers,
        interval=format_interval,
    )


def _gains(arm: Mapping[str, Any]) -> list[str]:
    cells = [arm["name"], _percent(arm["accuracy"])]
    if arm["delta_accuracy"] is None:
        return [*cells, "", "", "", ""]
    delta = format_interval(arm["delta_accuracy"], arm["delta_accuracy_ci"], "+.1f", 100)
    saved = format_interval(arm["saving"], arm["saving_ci"], ".1f", 100)
    return [*cells, delta, saved, f"{_percent(arm['harm'])} ({_percent(arm['harm_upper'])})", _percent(arm["help"])]


def _costs(arm: Mapping[str, Any]) -> list[str]:
    counts = [f"{arm['tokens'][kind]:.1f}" for kind in KINDS]
    seconds = "" if arm["seconds"] is None else f"{arm['seconds']:.0f}"
    shares = [_percent(arm[name]) for name in ("iso_saving", "capped", "unanswered")]
    return [arm["name"], *counts, *shares, seconds]


def _amount(head: str, value: float | None) -> str:
    return "" if value is None else f"{value * (1000 if '1k' in head else 1):.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
