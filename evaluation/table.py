"""The result of a benchmark for the terminal: what was gained and lost, what was spent, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_TOKENS = ("thinking", "answer", "overhead", "total")
_GAINS = ("arm", "accuracy", "Δ points [95% CI]", "saved % [95% CI]", "harm (at most)", "help")
_COSTS = ("arm", *_TOKENS, "cut off", "seconds")


def show(result: dict[str, Any], console: Console) -> None:
    """Print a benchmark's result and its verdict; fits 80 columns."""
    console.print(_title(result), highlight=False, soft_wrap=True)
    for head, cells in ((_GAINS, _gains), (_COSTS, _costs)):
        console.print()
        console.print(_table(head, [cells(arm) for arm in result["arms"]]))
    console.print()
    console.print(verdict_line(result), highlight=False, soft_wrap=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _title(result: dict[str, Any]) -> str:
    splits = ", ".join(f"{name} {split['n']} (sha {split['sha256']})" for name, split in result["splits"].items())
    runs = f"{result['rollouts']} rollout(s), seed {result['seed']}"
    return f"{result['model']} on {', '.join(result['tasks'])}: {splits}, {runs}"


def _gains(arm: dict[str, Any]) -> list[str]:
    cells = [arm["name"], f"{arm['accuracy']:.1%}"]
    if arm["delta_accuracy"] is None:
        return [*cells, "", "", "", ""]
    delta = f"{100 * arm['delta_accuracy']:+.1f} {_range(arm['delta_accuracy_ci'], '+.1f')}"
    saved = f"{100 * arm['saving']:.1f} {_range(arm['saving_ci'], '.1f')}"
    return [*cells, delta, saved, f"{arm['harm']:.1%} ({arm['harm_upper']:.1%})", f"{arm['help']:.1%}"]


def _costs(arm: dict[str, Any]) -> list[str]:
    counts = [f"{arm['tokens'][kind]:.1f}" for kind in _TOKENS]
    return [arm["name"], *counts, f"{arm['capped']:.1%}", f"{arm['seconds']:.0f}"]


def _range(pair: list[float], form: str) -> str:
    return f"[{100 * pair[0]:{form}}, {100 * pair[1]:{form}}]"


def verdict_line(result: dict[str, Any]) -> str:
    """One sentence: who against whom, at which margin, and what was found."""
    sides = f"{result['judged']} against {result['baseline']}"
    line = f"VERDICT: {sides} at a margin of {100 * result['margin']:g} point(s): {result['verdict']}"
    if result["verdict"] != "inconclusive":
        return line
    needed = result["needed_n"]
    return f"{line} ({f'about {needed} questions would decide it' if needed else 'the difference lies on the line'})"
