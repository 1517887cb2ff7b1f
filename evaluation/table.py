"""The result of a benchmark as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_TOKENS = ("thinking", "answer", "overhead", "total")
_HEAD = ("arm", "accuracy", "Δ [95% CI]", *_TOKENS, "saving [95% CI]", "harm (at most)", "help", "cut off", "seconds")


def show(result: dict[str, Any], console: Console) -> None:
    """Print a benchmark's result and its verdict."""
    table = Table(title=_title(result), title_justify="left", box=None, pad_edge=False)
    for i, head in enumerate(_HEAD):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for arm in result["arms"]:
        table.add_row(*_cells(arm))
    console.print(table)
    console.print(verdict_line(result), highlight=False)


def _title(result: dict[str, Any]) -> str:
    splits = ", ".join(f"{name} {split['n']} (sha {split['sha256']})" for name, split in result["splits"].items())
    runs = f"{result['rollouts']} rollout(s), seed {result['seed']}"
    return f"{result['model']} on {', '.join(result['tasks'])}: {splits}, {runs}"


def _cells(arm: dict[str, Any]) -> list[str]:
    tokens = arm["tokens"]
    delta = saving = harm = helped = ""
    if arm["delta_accuracy"] is not None:
        delta = f"{100 * arm['delta_accuracy']:+.1f} {_range(arm['delta_accuracy_ci'], '+.1f')}"
        saving = f"{arm['saving']:.1%} {_range(arm['saving_ci'], '.1f')}"
        harm, helped = f"{arm['harm']:.1%} ({arm['harm_upper']:.1%})", f"{arm['help']:.1%}"
    counts = [f"{tokens[kind]:.0f}" for kind in _TOKENS]
    end = [f"{arm['capped']:.1%}", f"{arm['seconds']:.0f}"]
    return [arm["name"], f"{arm['accuracy']:.1%}", delta, *counts, saving, harm, helped, *end]


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
