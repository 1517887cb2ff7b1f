"""Right answers of a model as it stands, without control: what changes to its weights are measured by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.engines.validation import check_max_new_tokens
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.types import Request, SamplingParams
from ..kernels.quantization.calibration_text import render_question
from .runner import batches
from .stats import paired_bootstrap
from .tasks.equality import AnswerChecker, right_answers
from .tasks.questions import Question, fingerprint, load

_TOGETHER = 32  # questions that are answered at a time


@dataclass(frozen=True)
class AccuracyCheck:
    """Questions that are asked as they stand and answered greedily; implements
    `kernels.quantization.run.QuantizationCheck`.

    Else a model decodes by its own generation defaults. An answer that is broken off counts by the last number in it.
    name: of the task. tokens: at most, of an answer.
    """

    name: str
    questions: Sequence[Question]
    tokens: int

    @classmethod
    def of(cls, task: str, limit: int | None, tokens: int) -> AccuracyCheck:
        """The first questions of a task's test split; raises TaskError."""
        return cls(task, load(task, "test", limit, 0), tokens)

    @property
    def digest(self) -> str:
        """What decides its outcome beside the model, hashed."""
        return hashlib.sha256(f"{fingerprint(self.questions)}:{self.tokens}".encode()).hexdigest()[:16]

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise OptionError or PromptError where a question cannot be asked."""
        engine = TransformersEngine(model, tokenizer)
        for row, request in enumerate(self._requests(tokenizer)):
            check_max_new_tokens(request, row, engine.context_length, engine.name)

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        """Which of the questions a model answers rightly."""
        engine, asked, said = TransformersEngine(model, tokenizer), self._requests(tokenizer), dict[int, str]()
        for rows in batches(self.questions, _TOGETHER):
            done = engine.generate([asked[row] for row in rows], SamplingParams(temperature=0))
            said.update({row: tokenizer.decode(one.token_ids) for row, one in zip(rows, done, strict=True)})
        answers = [normalize_answer(extract_answer(said[row])) for row in range(len(self.questions))]
        with AnswerChecker() as checker:
            return right_answers(list(zip(self.questions, answers, strict=True)), checker)

    def compare(self, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
        """Shares of right answers, and the change with its interval over questions."""
        change = paired_bootstrap([float(b) - float(a) for a, b in zip(before, after, strict=True)])
        return {
            "name": self.name,
            "questions": len(self.questions),
            "tokens": self.tokens,
            "graded by": AnswerChecker().method,
            "right": {"before": sum(before) / len(before), "after": sum(after) / len(after)},
            "change": [change.estimate, change.low, change.high],
        }

    def _requests(self, tokenizer: Any) -> list[Request]:
        return [Request(tuple(_prompt(tokenizer, question.problem)), self.tokens) for question in self.questions]


def _prompt(tokenizer: Any, problem: str) -> list[int]:
    """A question as the chat template has it, or as it stands where there is none."""
    if getattr(tokenizer, "chat_template", None):
        return render_question(tokenizer, problem)
    plain: list[int] = tokenizer(problem)["input_ids"]
    return plain
