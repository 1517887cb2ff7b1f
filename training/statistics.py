"""What the completions of a step say about the policy: of each mode, tier and level, and of the policy as it is.

Completions that were begun in a mode say nothing about how often the policy would choose it. The chance of the first
token does; weighed by it, they tell what the policy would score if left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from .rewards.base import AGENTIC, NO_THINK, THINK
from .sampling import FREE

Row = Mapping[str, Any]
"""A completion's columns, see `rollouts.FIELDS`, with `right`."""


def statistics(rows: Sequence[Row], empty_tokens: int) -> dict[str, float]:
    """Figures by name; a name is there only if there was something to count."""
    made: dict[str, float] = {"unfinished": _mean(rows, lambda r: r["finish_reason"] == "length")}
    for mode in (THINK, NO_THINK, AGENTIC):
        of_mode = [row for row in rows if row["mode"] == mode and row["weight"]]
        if of_mode:
            made[f"modes/{mode}/accuracy"] = _mean(of_mode, lambda r: r["right"])
            made[f"modes/{mode}/tokens"] = _mean(of_mode, _tokens)
            if mode == THINK:
                made["modes/think/empty"] = _mean(of_mode, lambda r: r["thinking_tokens"] < empty_tokens)
    made["policy/no_think"] = _mean(rows, lambda r: r["chance"])
    made["policy/accuracy"] = policy_mean(rows, lambda r: float(r["right"]))
    made["policy/tokens"] = policy_mean(rows, _tokens)
    for kind in ("tier", "level"):
        for value in sorted({row[kind] for row in rows if row.get(kind) is not None}):
            part = [row for row in rows if row[kind] == value]
            made[f"{kind}/{value}/accuracy"] = policy_mean(part, lambda r: float(r["right"]))
            made[f"{kind}/{value}/tokens"] = policy_mean(part, _tokens)
            made[f"{kind}/{value}/no_think"] = _mean(part, lambda r: r["chance"])
    return made


def policy_mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    """The mean of a value under the policy itself, the average over questions of an estimate for each.

    Free completions, if any, are samples of it; otherwise each mode counts by the policy's own chance of it.
    """
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(row["id"], []).append(row)
    return fmean(_of_question(group, value) for group in questions.values())


def _of_question(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    free = [row for row in rows if row["begun"] == FREE]
    modes = {mode: [row for row in rows if row["begun"] == mode] for mode in (THINK, NO_THINK)}
    if free or not all(modes.values()):
        return fmean(map(value, free or rows))
    chance = fmean(row["chance"] for row in rows)
    return (1 - chance) * fmean(map(value, modes[THINK])) + chance * fmean(map(value, modes[NO_THINK]))


def _tokens(row: Row) -> float:
    return float(row["thinking_tokens"] + row["response_tokens"])


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return fmean(float(value(row)) for row in rows)
