"""Running arms: every question, every rollout, one batch after the other.

Everything that costs model time is a piece of the journal, seeded by its own name, so that a run that was killed goes
on where it was and ends as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...controller.options import with_seed
from ..runner import EvalRunner, batch_seed, batches
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question
from .arms import Arm
from .checkpoint_log import CheckpointLog
from .records import ArmRecords, BenchRow, Weights, to_row

Advance = Callable[[str, int], None]
"""Called as `advance(what, rows)` after each batch."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms share; `helper` answers for the arm of that name."""

    answerer: EvalRunner
    questions: Sequence[Question]
    checker: AnswerChecker
    journal: CheckpointLog
    seed: int = 0
    rollouts: int = 1
    batch: int = 64
    weights: Weights = field(default_factory=Weights)
    helper: EvalRunner | None = None
    advance: Advance = lambda what, rows: None

    def units(self) -> list[tuple[int, int, list[int]]]:
        """Rollout, number and indices of the questions of every batch."""
        made = batches(self.questions, self.batch)
        return [(rollout, number, rows) for rollout in range(self.rollouts) for number, rows in enumerate(made)]

    def ordered(self, rows: Sequence[BenchRow]) -> list[BenchRow]:
        """Rows by rollout and then by question."""
        places = {question.id: i for i, question in enumerate(self.questions)}
        return sorted(rows, key=lambda row: (row.rollout, places[row.id]))


def run_arm(bench: Bench, arm: Arm) -> ArmRecords:
    """Let one arm answer all questions."""
    pieces = []
    for rollout, number, indices in bench.units():
        pieces.append(piece_name(bench, arm, rollout, number, indices))
        bench.advance(arm.name, len(indices))
    rows = [BenchRow(**row) for piece in pieces for row in piece["rows"]]
    seconds, made = (sum(piece[what] for piece in pieces) for what in ("seconds", "made"))
    return ArmRecords(arm.name, bench.ordered(rows), bench.rollouts, seconds, made)


def piece_name(bench: Bench, arm: Arm, rollout: int, number: int, indices: Sequence[int]) -> Any:
    """One batch of one arm: {rows, ids: output ids of each, seconds, made: tokens by the engine's own count}."""
    answerer = bench.helper if arm.on_helper else bench.answerer
    assert answerer is not None  # `make_arms` refuses the arm otherwise
    questions = [bench.questions[i] for i in indices]
    # The seed does not depend on the arm: arms that begin alike draw alike.
    options = with_seed(arm.options, batch_seed(bench.seed, rollout, number))
    own = bench.weights.helper if arm.on_helper else 1.0

    def make() -> dict[str, Any]:
        before, started = answerer.made, time.monotonic()
        done = answerer.answer([question.problem for question in questions], options)
        seconds = time.monotonic() - started
        rows = [
            to_row(question, arm.name, rollout, generation, bench.checker, bench.weights, own)
            for question, generation in zip(questions, done, strict=True)
        ]
        return {
            "rows": [asdict(row) for row in rows],
            "ids": [list(generation.token_ids) for generation in done],
            "seconds": seconds,
            "made": answerer.made - before,
        }

    return bench.journal.piece(f"{arm.name}/{rollout}/{number}", make)
