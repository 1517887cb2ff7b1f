"""Running the arms of a benchmark in batches.

Each batch is one piece of the checkpoint log, with a seed that depends only on its place, so a resumed run gives the
same result as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...checkpoint_log import CheckpointLog
from ...controller.options import with_seed
from ..runner import EvalRunner, batch_seed, batches
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question
from .arms import Arm
from .records import ArmRecords, BenchRow, Weights, to_row

Advance = Callable[[str, int], None]
"""Called as `advance(description, rows)` after each batch."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms share.

    Attributes:
        runner: The model under test.
        questions: The questions, the same for all arms.
        checker: Grades the answers.
        checkpoints: Finished batches.
        seed: Seed of the sampling.
        rollouts: Generations of each question.
        batch_size: Rows decoded at a time.
        weights: Relative costs of tokens.
        helper: The model of the arm `helper`.
        advance: Reports progress.
    """

    runner: EvalRunner
    questions: Sequence[Question]
    checker: AnswerChecker
    checkpoints: CheckpointLog
    seed: int = 0
    rollouts: int = 1
    batch_size: int = 64
    weights: Weights = field(default_factory=Weights)
    helper: EvalRunner | None = None
    advance: Advance = lambda description, rows: None

    def batches(self) -> list[tuple[int, int, list[int]]]:
        """Every batch as (rollout, number, indices of its questions)."""
        numbered = list(enumerate(batches(self.questions, self.batch_size)))
        return [(rollout, number, indices) for rollout in range(self.rollouts) for number, indices in numbered]

    def sort(self, rows: Sequence[BenchRow]) -> list[BenchRow]:
        """Rows by rollout, then by question."""
        positions = {question.id: i for i, question in enumerate(self.questions)}
        return sorted(rows, key=lambda row: (row.rollout, positions[row.id]))


def run_arm(bench: Bench, arm: Arm) -> ArmRecords:
    """Answer all questions with one arm."""
    pieces = []
    for rollout, number, indices in bench.batches():
        pieces.append(run_batch(bench, arm, rollout, number, indices))
        bench.advance(arm.name, len(indices))
    rows = [BenchRow(**row) for piece in pieces for row in piece["rows"]]
    seconds, engine_tokens = (sum(piece[key] for piece in pieces) for key in ("seconds", "made"))
    return ArmRecords(arm.name, bench.sort(rows), bench.rollouts, seconds, engine_tokens)


def run_batch(bench: Bench, arm: Arm, rollout: int, number: int, indices: Sequence[int]) -> Any:
    """Answer one batch: {rows, ids: output token ids, seconds, made: tokens by the engine's own count}."""
    runner = bench.helper if arm.on_helper else bench.runner
    assert runner is not None  # `make_arms` refuses the arm otherwise
    questions = [bench.questions[i] for i in indices]
    # The seed does not depend on the arm: arms that start alike sample alike.
    options = with_seed(arm.options, batch_seed(bench.seed, rollout, number))
    own = bench.weights.helper if arm.on_helper else 1.0

    def compute() -> dict[str, Any]:
        before, started = runner.generated_tokens, time.monotonic()
        results = runner.answer([question.problem for question in questions], options)
        seconds = time.monotonic() - started
        rows = [
            to_row(question, arm.name, rollout, result, bench.checker, bench.weights, own)
            for question, result in zip(questions, results, strict=True)
        ]
        return {
            "rows": [asdict(row) for row in rows],
            "ids": [list(result.token_ids) for result in results],
            "seconds": seconds,
            "made": runner.generated_tokens - before,
        }

    return bench.checkpoints.get_or_compute(f"{arm.name}/{rollout}/{number}", compute)
