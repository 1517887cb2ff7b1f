"""What arms came to on the same tasks, each beside the first, with intervals over tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ..economics.cost_metrics import cost_of_pass, set_cost_of_pass
from ..economics.prices import Price
from ..stats import paired_bootstrap, percentile_ends, resampled_means, wilson
from .episodes import Episode


def compared(arms: Mapping[str, Sequence[Episode]], price: Price | None = None, seed: int = 0) -> dict[str, Any]:
    """All arms, of which the first is the baseline, on the same tasks in the same order; `inf` becomes None."""
    base = next(iter(arms.values()))
    rows = [
        {"arm": name, **_alone(episodes, price, seed), **({} if episodes is base else _beside(episodes, base, seed))}
        for name, episodes in arms.items()
    ]
    return {"tasks": len(base), "arms": rows}


def _alone(episodes: Sequence[Episode], price: Price | None, seed: int) -> dict[str, Any]:
    solved, written = _columns(episodes)
    rate, each = wilson(fmean(solved), len(solved)), set_cost_of_pass(written, solved, seed=seed)
    right = [e for e in episodes if e.solved]
    searches = [(e.isr, e.ise) for e in episodes if e.isr is not None and e.ise is not None]
    modes = sorted({e.mode for e in episodes if e.mode is not None})
    kinds = list(dict.fromkeys(e.kind for e in episodes))
    return {
        "solved": rate.estimate,
        "solved_ci": [rate.low, rate.high],
        "written": fmean(written),
        "read": fmean(e.read for e in episodes),
        "thinking": fmean(e.thinking for e in episodes),
        "written_per_solved": _finite(each.estimate),
        "written_per_solved_ci": [_finite(each.low), _finite(each.high)],
        "steps_per_solved": fmean(e.steps for e in right) if right else None,
        "calls": fmean(e.calls for e in episodes),
        "failed_calls": fmean(e.failed_calls for e in episodes),
        "duplicates": fmean(e.duplicates for e in episodes),
        "isr": fmean(isr for isr, _ in searches) if searches else None,
        "ise": fmean(ise for _, ise in searches) if searches else None,
        "seconds": fmean(e.seconds for e in episodes),
        "unended": sum(e.error is not None for e in episodes),
        "kinds": {kind: _group([e for e in episodes if e.kind == kind], price) for kind in kinds},
        "modes": {mode: _group([e for e in episodes if e.mode == mode], price) for mode in modes},
        "usd_per_solved": _usd(episodes, price),
    }


def _group(some: Sequence[Episode], price: Price | None) -> dict[str, Any]:
    """Some of the episodes: how many, and their cost-of-pass (arXiv 2504.13359) in tokens written and in US dollars."""
    solved, written = _columns(some)
    return {
        "n": len(some),
        "solved": fmean(solved),
        "written": fmean(written),
        "written_per_solved": _finite(cost_of_pass(written, solved)),
        "usd_per_solved": _usd(some, price),
    }


def _beside(episodes: Sequence[Episode], base: Sequence[Episode], seed: int) -> dict[str, Any]:
    """Differences from the baseline: success in shares of 1, and what is saved of the tokens per solved task."""
    (solved, written), (was_solved, was_written) = _columns(episodes), _columns(base)
    gained = paired_bootstrap(np.subtract(solved, was_solved), seed=seed)
    found = {"delta_solved": gained.estimate, "delta_solved_ci": [gained.low, gained.high]}
    if not sum(solved) or not sum(was_solved):
        return {**found, "saved": None, "saved_ci": None}
    saved = 1 - cost_of_pass(written, solved) / cost_of_pass(was_written, was_solved)
    means = resampled_means(np.stack([written, solved, was_written, was_solved], axis=1), seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 1 - (means[:, 0] / means[:, 1]) / (means[:, 2] / means[:, 3])
    low, high = np.quantile(drawn[np.isfinite(drawn)], percentile_ends(len(solved)))
    return {**found, "saved": saved, "saved_ci": [float(low), float(high)]}


def _columns(episodes: Sequence[Episode]) -> tuple[list[float], list[float]]:
    return [float(e.solved) for e in episodes], [float(e.written) for e in episodes]


def _usd(episodes: Sequence[Episode], price: Price | None) -> float | None:
    if price is None:
        return None
    costs = [price.cost(e.read, e.written) for e in episodes]
    return _finite(cost_of_pass(costs, [float(e.solved) for e in episodes]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_text(report: Mapping[str, Any]) -> str:
    """The table of arms, and under it each arm by kind of task and by mode."""
    lines = [_HEAD, *map(_line, report["arms"])]
    for arm in report["arms"]:
        for what in ("kinds", "modes"):
            if len(arm[what]) > (what == "modes"):
                lines += ["", f"{arm['arm']}, by {what[:-1]}", *(_part(name, of) for name, of in arm[what].items())]
    return "\n".join(lines)


_HEAD = (
    f"{'arm':<13} {'solved % [95% CI]':>19} {'Δ points':>18} {'written':>8} {'per solved':>10} {'saved % [95% CI]':>19}"
    f" {'read':>7} {'steps':>6} {'dup %':>6} {'ISR':>5} {'ISE':>5}"
)


def _line(arm: Mapping[str, Any]) -> str:
    low, high = arm["solved_ci"]
    beside = saved = ""
    if "delta_solved" in arm:
        worst, best = arm["delta_solved_ci"]
        beside = f"{100 * arm['delta_solved']:+.1f} [{100 * worst:+.1f},{100 * best:+.1f}]"
        if arm["saved"] is not None:
            least, most = arm["saved_ci"]
            saved = f"{100 * arm['saved']:.1f} [{100 * least:.1f},{100 * most:.1f}]"
    return (
        f"{arm['arm']:<13} {100 * arm['solved']:>6.1f} [{100 * low:.1f},{100 * high:.1f}] {beside:>18} "
        f"{arm['written']:>8.1f} {_or_none(arm['written_per_solved'], 10, 1)} {saved:>19} {arm['read']:>7.0f} "
        f"{_or_none(arm['steps_per_solved'], 6, 1)} {100 * arm['duplicates']:>6.1f} {_or_none(arm['isr'], 5, 2)} "
        f"{_or_none(arm['ise'], 5, 2)}"
    )


def _part(name: str, of: Mapping[str, Any]) -> str:
    dollars = "" if of["usd_per_solved"] is None else f", {of['usd_per_solved']:.6f} USD"
    each = "none solved" if of["written_per_solved"] is None else f"{of['written_per_solved']:.1f} tokens per solved"
    return f"  {name:<10} {of['n']:>5} tasks, {100 * of['solved']:5.1f}% solved, {each}{dollars}"


def _or_none(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
