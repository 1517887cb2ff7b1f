"""The result of a benchmark for the terminal: what was gained and lost, what was spent, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_TOKENS = ("thinking", "answer", "overhead", "total")
_GAINS = ("arm", "right %", "Δ points [95% CI]", "saved % [95% CI]", "harm % (≤)", "help %")
_COSTS = ("arm", *_TOKENS, "iso-saved", "cut %", "no ans %", "seconds")


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print a benchmark's result and its verdict; fits 80 columns."""
    arms = result["arms"]
    _say(console, _title(result))
    for head, cells in ((_GAINS, _gains), (_COSTS, _costs)):
        console.print()
        console.print(_table(head, [cells(arm) for arm in arms]))
    settings = [f"{arm['name']}: {arm['setting']}" for arm in arms if arm["setting"]]
    for lines in (settings, result["notes"], [verdict_line(result)]):
        if lines:
            console.print()
        for line in lines:
            _say(console, line)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _title(result: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{name} {split['n']} (sha {split['sha256']})" for name, split in result["splits"].items())
    runs = f"{result['rollouts']} rollout(s), seed {result['seed']}"
    return f"{result['model']} on {', '.join(result['tasks'])}, {runs}\nsplits, no question in two: {splits}"


def _gains(arm: Mapping[str, Any]) -> list[str]:
    cells = [arm["name"], _percent(arm["accuracy"])]
    if arm["delta_accuracy"] is None:
        return [*cells, "", "", "", ""]
    delta = f"{100 * arm['delta_accuracy']:+.1f} {_range(arm['delta_accuracy_ci'], '+.1f')}"
    saved = f"{_percent(arm['saving'])} {_range(arm['saving_ci'], '.1f')}"
    return [*cells, delta, saved, f"{_percent(arm['harm'])} ({_percent(arm['harm_upper'])})", _percent(arm["help"])]


def _costs(arm: Mapping[str, Any]) -> list[str]:
    counts = [f"{arm['tokens'][kind]:.1f}" for kind in _TOKENS]
    seconds = "" if arm["seconds"] is None else f"{arm['seconds']:.0f}"
    return [
        arm["name"],
        *counts,
        _percent(arm["iso_saving"]),
        _percent(arm["capped"]),
        _percent(arm["unanswered"]),
        seconds,
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _range(pair: list[float], form: str) -> str:
    return f"[{100 * pair[0]:{form}},{100 * pair[1]:{form}}]"


def verdict_line(result: Mapping[str, Any]) -> str:
    """One sentence: who against whom, at which margin, and what was found."""
    sides = f"{result['judged']} against {result['baseline']}"
    line = f"VERDICT: {sides} at a margin of {100 * result['margin']:g} point(s): {result['verdict']}"
    if result["verdict"] != "inconclusive":
        return line
    needed = result["needed_n"]
    return f"{line} ({f'about {needed} questions would decide it' if needed else 'the difference lies on the line'})"
