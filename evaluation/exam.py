"""Right answers of a model as it stands, without control: what changes to its weights are measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..controller.answers import boxed_or_last, normalise
from ..controller.engines.base import Request, Sampling
from ..controller.engines.transformers import TransformersEngine
from .answering import batches
from .stats import paired_bootstrap
from .tasks.equality import AnswerChecker
from .tasks.questions import Question, load

_TOGETHER = 32  # questions that are answered at a time


@dataclass(frozen=True)
class Exam:
    """Questions that are asked as they stand and answered greedily; implements `kernels.quantization.run.Exam`.

    name: of the task. tokens: at most, of an answer.
    """

    name: str
    questions: Sequence[Question]
    tokens: int

    @classmethod
    def of(cls, task: str, limit: int | None, tokens: int) -> Exam:
        """The first questions of a task's test split; raises TaskError."""
        return cls(task, load(task, "test", limit, 0), tokens)

    @property
    def written(self) -> Mapping[str, Any]:
        """What decides its outcome, in JSON form."""
        return {"name": self.name, "questions": len(self.questions), "tokens": self.tokens}

    def take(self, model: Any, tokenizer: Any) -> list[bool]:
        """Which of the questions a model answers rightly."""
        engine, said = TransformersEngine(model, tokenizer), dict[int, str]()
        for rows in batches(self.questions, _TOGETHER):
            asked = [Request(_prompt(tokenizer, self.questions[row].problem), self.tokens) for row in rows]
            done = engine.generate(asked, Sampling(temperature=0))
            said.update({row: tokenizer.decode(one.token_ids) for row, one in zip(rows, done, strict=True)})
        with AnswerChecker() as checker:
            return [
                checker.grade(question, normalise(boxed_or_last(said[row]))).equal
                for row, question in enumerate(self.questions)
            ]

    def compared(self, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
        """Shares of right answers, and the change with its interval over questions."""
        change = paired_bootstrap([float(b) - float(a) for a, b in zip(before, after, strict=True)])
        return {
            **self.written,
            "right": {"before": sum(before) / len(before), "after": sum(after) / len(after)},
            "change": [change.estimate, change.low, change.high],
        }


def _prompt(tokenizer: Any, problem: str) -> tuple[int, ...]:
    """A question as the chat template has it, or as it stands where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return tuple(tokenizer(problem)["input_ids"])
    asked = [{"role": "user", "content": problem}]
    return tuple(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))
