"""Whether the answer is right, by the same equality that the benchmarks use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...controller.text.answers import extract_answer
from ...evaluation.tasks.equality import DEADLINE, AnswerChecker
from ...evaluation.tasks.questions import Drawn, Question
from ...evaluation.tasks.sandbox import Closing
from .base import Reward, answer_part, get_text, gold_text, needed


class Correctness(Reward, Closing):
    """1 for a right answer, 0 for a wrong or missing one.

    marker: what ends the thinking; None if the prompt has ended it. Columns: `answer`, the gold one, text or a number,
    None only where one of the last two judges; `response`, the answering part where rollouts have split it off already;
    `drawn`, name and entry of a task of reasoning-gym; `solved`, what rollouts have judged themselves. A helper process
    is started where a comparison needs one, and ended by `close()`.
    """

    name = "correctness"

    def __init__(self, marker: str | None = "</think>", deadline: float = DEADLINE) -> None:
        self.marker, self.deadline = marker, deadline
        self._checker = AnswerChecker(deadline)  # which threads share, and which starts nothing yet

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.marker, self.deadline)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        gold = needed(columns, "answer", self.name)
        said = columns.get("response") or [answer_part(get_text(c), self.marker) for c in completions]
        drawn, solved = (columns.get(name) or [None] * len(completions) for name in ("drawn", "solved"))
        return [
            float(self.is_right(_wanted(g, d, place), s, d) if known is None else known)
            for place, (g, s, d, known) in enumerate(zip(gold, said, drawn, solved, strict=True))
        ]

    def is_right(self, gold: str, said: str, drawn: Sequence[str] | None = None) -> bool:
        """Whether an answering part amounts to the gold answer."""
        if not said:
            return False
        question = Question("", "", gold, drawn=Drawn(*drawn) if drawn else None)
        return self._checker.grade(question, said if drawn else extract_answer(said)).equal

    def close(self) -> None:
        """End the helper process, if there is one."""
        self._checker.close()


def _wanted(gold: Any, drawn: Sequence[str] | None, place: int) -> str:
    """The gold answer of a row; a task of reasoning-gym judges without one."""
    return "" if drawn else gold_text(gold, f"row {place} of this batch's column 'answer'")
