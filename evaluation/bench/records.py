"""What is kept of a generation: one row of counts, and the rows of an arm as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...controller.text.answers import extract_answer, extract_boxed
from ...controller.trace import GenerationResult
from ...errors import OptionError
from ..stats import Array
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question

KINDS = ("thinking", "answer", "overhead", "total")
OVERHEADS = ("discarded", "probe", "verifier", "delegated", "consulted", "reprefilled")
_COLUMNS: Mapping[str, str] = {"answer": "answer_tokens"}


@dataclass(frozen=True, slots=True)
class Weights:
    """What a token of another model, or one read instead of written, weighs beside a decoded one of the model's own.

    helper: one that the helper writes; consulted: one that it reads.
    """

    helper: float = 1.0
    consulted: float = 1.0
    verifier: float = 1.0
    reprefilled: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) >= 0:
                raise OptionError(f"the weight of {name} tokens is {getattr(self, name)}; accepted: 0 or more")


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One generation of one arm: counts in tokens; overhead and total are weighted, the kinds of overhead are not.

    outcome: what comparing the answer came to, see `equality`.
    """

    id: str
    task: str
    level: int | None
    tier: str
    arm: str
    rollout: int
    answer: str
    right: bool
    outcome: str
    capped: bool
    prompt: int
    thinking: int
    answer_tokens: int
    forced: int
    discarded: int
    probe: int
    verifier: int
    delegated: int
    consulted: int
    reprefilled: int
    overhead: float
    total: float


def to_row(
    question: Question,
    arm: str,
    rollout: int,
    generation: GenerationResult,
    checker: AnswerChecker,
    weights: Weights,
    own: float = 1.0,
) -> BenchRow:
    """Count one generation, each of whose written tokens weighs `own`, and grade its answer."""
    usage = generation.usage
    # A model that ended its turn within its thinking may have put its answer there; no arm is to lose by that.
    answer = extract_answer(generation.answer) if generation.answer else extract_boxed(generation.thinking) or ""
    graded = checker.grade(question, answer)
    overhead = (
        usage.discarded
        + usage.probe
        + weights.verifier * usage.verifier
        + weights.helper * usage.delegated
        + weights.consulted * usage.consulted
        + weights.reprefilled * usage.reprefilled
    )
    return BenchRow(
        id=question.id,
        task=question.task,
        level=question.level,
        tier=generation.tier,
        arm=arm,
        rollout=rollout,
        answer=answer,
        right=graded.equal,
        outcome=graded.outcome,
        capped=generation.finish_reason == "length",
        prompt=usage.prompt,
        thinking=usage.thinking,
        answer_tokens=usage.answer,
        forced=usage.forced,
        **{kind: getattr(usage, kind) for kind in OVERHEADS},
        overhead=overhead,
        total=own * (usage.thinking + usage.answer) + overhead,
    )


@dataclass(frozen=True, slots=True)
class ArmRecords:
    """All rows of one arm, ordered by rollout and then by question.

    seconds: wall time. made: tokens its engine put out by the engine's own count. Both are None where the arm was not
    run. setting: what was found for it, in words. cut: it was cut from the baseline's thinking.
    """

    arm: str
    rows: Sequence[BenchRow]
    rollouts: int
    seconds: float | None = None
    made: int | None = None
    setting: str = ""
    cut: bool = False

    def column(self, name: str) -> Array:
        """One field as [questions, rollouts]."""
        flat = np.array([getattr(row, _COLUMNS.get(name, name)) for row in self.rows], np.float64)
        return flat.reshape(self.rollouts, -1).T

    def means(self, name: str) -> Array:
        """One field's means over rollouts, [questions]."""
        means: Array = self.column(name).mean(axis=1)
        return means

    def total(self) -> float:
        """Mean tokens of one generation."""
        return float(self.column("total").mean())


def row_dicts(records: Sequence[ArmRecords]) -> list[dict[str, Any]]:
    """All rows in JSON form."""
    return [asdict(row) for one in records for row in one.rows]
