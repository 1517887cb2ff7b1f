"""A paired benchmark: every arm answers the same questions with the same seeds, and every token counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..controller.session import Session
from ..controller.trace import Generation
from .arms import Arm
from .batching import answer_all
from .reading import final_answer
from .stats import Array, Interval, mcnemar, paired_bootstrap, question_means, ratio_bootstrap, upper_bound, wilson
from .tasks.questions import Question, is_right
from .verdict import judge

KINDS = ("thinking", "answer", "overhead", "total")
Advance = Callable[[str, int], None]
"""Called as `advance(arm, rows)` after each batch."""


@dataclass(frozen=True, slots=True)
class Row:
    """One generation of one arm, reduced to what is counted; tokens of the four kinds."""

    id: str
    level: int | None
    arm: str
    rollout: int
    answer: str
    right: bool
    capped: bool
    thinking: int
    answer_tokens: int
    overhead: int
    total: int


@dataclass(frozen=True, slots=True)
class Records:
    """All rows of one arm, ordered by rollout and then by question, and the wall time they took."""

    arm: str
    rows: Sequence[Row]
    rollouts: int
    seconds: float

    def column(self, name: str) -> Array:
        """One field as [questions, rollouts]."""
        flat = np.array([getattr(row, "answer_tokens" if name == "answer" else name) for row in self.rows], np.float64)
        return flat.reshape(self.rollouts, -1).T


def run_arm(
    session: Session,
    arm: Arm,
    questions: Sequence[Question],
    *,
    seed: int,
    rollouts: int,
    batch: int,
    advance: Advance | None = None,
) -> Records:
    """Let one arm answer all questions `rollouts` times."""
    started, rows = time.monotonic(), []

    def told(count: int) -> None:
        if advance is not None:
            advance(arm.name, count)

    for rollout in range(rollouts):
        made = answer_all(session, questions, arm.options, seed=seed, rollout=rollout, size=batch, advance=told)
        rows += [as_row(q, arm.name, rollout, g) for q, g in zip(questions, made, strict=True)]
    return Records(arm.name, rows, rollouts, time.monotonic() - started)


def as_row(question: Question, arm: str, rollout: int, generation: Generation) -> Row:
    """Count one generation."""
    usage, answer = generation.usage, final_answer(generation)
    return Row(
        id=question.id,
        level=question.level,
        arm=arm,
        rollout=rollout,
        answer=answer,
        right=is_right(answer, question.answer),
        capped=generation.finish_reason == "length",
        thinking=usage.thinking,
        answer_tokens=usage.answer,
        overhead=usage.overhead,
        total=usage.total,
    )


def compare(records: Sequence[Records], margin: float, seed: int) -> dict[str, Any]:
    """The `arms`, `verdict` and `needed_n` of the result; the first arm is the baseline, the second is judged.

    Raises ValueError if the arms were not asked the same questions in the same order.
    """
    base = records[0]
    asked = [(row.id, row.rollout) for row in base.rows]
    for other in records[1:]:
        if [(row.id, row.rollout) for row in other.rows] != asked:
            raise ValueError(f"arm {other.arm!r} was asked other questions than {base.arm!r}; ask both the same")
    judged = records[1]
    accuracy, tokens = (question_means(judged.column(k)) - question_means(base.column(k)) for k in ("right", "total"))
    found = judge(
        accuracy,
        paired_bootstrap(accuracy, seed=seed),
        tokens,
        paired_bootstrap(tokens, bounded=False, seed=seed),
        margin,
    )
    return {
        "arms": [summary(r, None if r is base else base, seed) for r in records],
        "verdict": found.word,
        "needed_n": found.needed_n,
        "judged": judged.arm,
        "baseline": base.arm,
    }


def summary(ours: Records, base: Records | None, seed: int) -> dict[str, Any]:
    """One arm's entry: tokens are means of one generation, deltas are ours minus the baseline (None for itself)."""
    right = question_means(ours.column("right"))
    n = len(right)
    entry: dict[str, Any] = {
        "name": ours.arm,
        "n": n,
        "accuracy": float(right.mean()),
        "accuracy_ci": _pair(wilson(float(right.mean()), n)),
        "tokens": {kind: float(ours.column(kind).mean()) for kind in KINDS},
        **(dict.fromkeys(_PAIRED) if base is None else _paired(ours, base, seed)),
        "seconds": ours.seconds,
        "capped": float(ours.column("capped").mean()),
        "unanswered": sum(not row.answer for row in ours.rows) / len(ours.rows),
        "per_level": _per_level(ours),
    }
    return entry


_PAIRED = (
    "delta_accuracy",
    "delta_accuracy_ci",
    "delta_total",
    "delta_total_ci",
    "harm",
    "harm_upper",
    "help",
    "mcnemar_p",
    "saving",
    "saving_ci",
)


def _paired(ours: Records, base: Records, seed: int) -> Mapping[str, Any]:
    right, was_right = ours.column("right"), base.column("right")
    total, was_total = ours.column("total"), base.column("total")
    accuracy = paired_bootstrap(right - was_right, seed=seed)
    tokens = paired_bootstrap(total - was_total, bounded=False, seed=seed)
    saving = ratio_bootstrap(total, was_total, seed=seed)
    harms = question_means(was_right * (1 - right))
    values = (
        accuracy.estimate,
        _pair(accuracy),
        tokens.estimate,
        _pair(tokens),
        float(harms.mean()),
        upper_bound(float(harms.sum()), len(harms)),
        float((right * (1 - was_right)).mean()),
        mcnemar(right - was_right),
        saving.estimate,
        _pair(saving),
    )
    return dict(zip(_PAIRED, values, strict=True))


def _per_level(records: Records) -> dict[str, dict[str, float]]:
    levels = sorted({row.level for row in records.rows if row.level is not None})
    out = {}
    for level in levels:
        rows = [row for row in records.rows if row.level == level]
        out[str(level)] = {
            "n": len(rows) // records.rollouts,
            "accuracy": sum(row.right for row in rows) / len(rows),
            "thinking": sum(row.thinking for row in rows) / len(rows),
            "total": sum(row.total for row in rows) / len(rows),
        }
    return out


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def row_dicts(records: Sequence[Records]) -> list[dict[str, Any]]:
    """All rows in JSON form."""
    return [asdict(row) for r in records for row in r.rows]
