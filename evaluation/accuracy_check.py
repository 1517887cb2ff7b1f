"""The accuracy of a model without control, used to measure what a change to its weights costs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..controller.engines.sequence import check_max_new_tokens
from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.types import Request, SamplingParams
from ..kernels.quantization.calibration_text import render_question
from .runner import batches
from .stats import paired_bootstrap
from .tasks.equality import AnswerChecker, right_answers
from .tasks.questions import Question, fingerprint, load

_BATCH_SIZE = 32


@dataclass(frozen=True)
class AccuracyCheck:
    """Questions answered greedily, without control; implements `kernels.quantization.run.QuantizationCheck`.

    If an answer is cut off, the last number in it counts.

    Attributes:
        name: The task's name.
        questions: Its questions.
        max_new_tokens: Limit of each answer.
    """

    name: str
    questions: Sequence[Question]
    max_new_tokens: int

    @classmethod
    def load(cls, task: str, limit: int | None, max_new_tokens: int) -> AccuracyCheck:
        """Load the first questions of a task's test split; raises TaskError."""
        return cls(task, load(task, "test", limit, 0), max_new_tokens)

    @property
    def digest(self) -> str:
        """A hash of everything that determines the outcome, except the model."""
        return hashlib.sha256(f"{fingerprint(self.questions)}:{self.max_new_tokens}".encode()).hexdigest()[:16]

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise OptionError or PromptError if a question does not fit this model."""
        engine = TransformersEngine(model, tokenizer)
        for row, request in enumerate(self._requests(tokenizer)):
            check_max_new_tokens(request, row, engine.context_length, engine.name)

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        """Whether the model answers each question correctly."""
        engine, requests, texts = TransformersEngine(model, tokenizer), self._requests(tokenizer), dict[int, str]()
        for rows in batches(self.questions, _BATCH_SIZE):
            completions = engine.generate([requests[row] for row in rows], SamplingParams(temperature=0))
            texts.update({row: tokenizer.decode(one.token_ids) for row, one in zip(rows, completions, strict=True)})
        answers = [normalize_answer(extract_answer(texts[row])) for row in range(len(self.questions))]
        with AnswerChecker() as checker:
            return right_answers(list(zip(self.questions, answers, strict=True)), checker)

    def compare(self, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
        """Accuracy before and after, and the change with its interval over questions."""
        change = paired_bootstrap([float(b) - float(a) for a, b in zip(before, after, strict=True)])
        return {
            "name": self.name,
            "questions": len(self.questions),
            "tokens": self.max_new_tokens,
            "graded by": AnswerChecker().method,
            "right": {"before": sum(before) / len(before), "after": sum(after) / len(after)},
            "change": [change.estimate, change.low, change.high],
        }

    def _requests(self, tokenizer: Any) -> list[Request]:
        prompts = (_encode_prompt(tokenizer, question.problem) for question in self.questions)
        return [Request(tuple(prompt), self.max_new_tokens) for prompt in prompts]


def _encode_prompt(tokenizer: Any, problem: str) -> list[int]:
    """The question in the chat template, or as plain text if there is none."""
    if getattr(tokenizer, "chat_template", None):
        return render_question(tokenizer, problem)
    plain: list[int] = tokenizer(problem)["input_ids"]
    return plain
