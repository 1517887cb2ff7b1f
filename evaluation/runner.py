"""Running a model on questions, on any engine, in batches of similar rows, and a check of its accuracy."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..controller.engines import EngineWrapper
from ..controller.engines.sequence import check_max_new_tokens
from ..controller.options import GenerationOptions
from ..controller.session import Session
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.text.markers import Markers, resolve_markers
from ..controller.text.tokenizer_adapter import TokenizerAdapter
from ..controller.trace import GenerationResult
from ..controller.types import Completion, Engine, Request, SamplingParams, TokenSink
from ..errors import check_known
from .stats import paired_bootstrap
from .tasks.equality import AnswerChecker, right_answers
from .tasks.questions import Question, fingerprint, load

ENGINES = ("transformers", "vllm")
_CHECK_BATCH_SIZE = 32


class TokenCountingEngine(EngineWrapper):
    """Counts every token that an engine generates, discarded ones included."""

    generated_tokens = 0

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        completions = super().generate(requests, sampling, sink)
        self.generated_tokens += sum(len(one.token_ids) + one.dropped + one.trial for one in completions)
        return completions


class SessionRunner:
    """Answers questions through a session, as users do; `engine` is the engine itself, without the token counter."""

    def __init__(self, engine: Engine, think_prompt: bool = False, markers: Markers | None = None) -> None:
        self.engine = engine
        self._counter = TokenCountingEngine(engine)
        self.session = Session(self._counter, markers, think_prompt)

    @property
    def generated_tokens(self) -> int:
        """Tokens that the engine has generated so far, by its own count."""
        return self._counter.generated_tokens

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        return self.session.run(problems, options)

    def continue_from(
        self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingParams
    ) -> list[Completion]:
        """Continue texts (token ids), each up to its limit of new tokens, in order and with signals."""
        requests = [Request(tuple(ids), limit, signals=True) for ids, limit in zip(texts, limits, strict=True)]
        return self._counter.generate(requests, sampling)


def load_runner(model: str, engine: str, *, think_prompt: bool = False, markers: str | None = None) -> SessionRunner:
    """Load a model; `markers` are OPEN,CLOSE, None finds them. Raises OptionError, ModelError, CapabilityError."""
    check_known("engine", engine, ENGINES)
    parsed = resolve_markers(markers)
    if engine == "vllm":
        from ..controller.vllm.engine import load_vllm

        return SessionRunner(load_vllm(model), think_prompt, parsed)
    from ..controller.engines.transformers.engine import load_engine

    return SessionRunner(load_engine(model, grouped=True), think_prompt, parsed)


def batch_seed(*parts: Any) -> int:
    """The sampling seed of one batch, derived from the parts that identify it."""
    text = ":".join(["tersely", *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def batches(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Indices of the questions in batches whose outputs are probably of similar length: by level, then by length."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].level or 0, len(questions[i].problem), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def tokens_until(ids: Sequence[int], codec: TokenizerAdapter, characters: int) -> int:
    """The smallest number of leading tokens whose text has at least this many characters."""
    return bisect_left(range(len(ids)), characters, key=lambda n: len(codec.decode(ids[:n])))


@dataclass(frozen=True)
class AccuracyCheck:
    """A model's accuracy without control, before and after a change to its weights.

    Implements `kernels.quantization.run.QuantizationCheck`. Questions are answered greedily; if an answer is cut off,
    the last number in it counts.
    """

    name: str
    questions: Sequence[Question]
    max_new_tokens: int

    @classmethod
    def load(cls, task: str, limit: int | None, max_new_tokens: int) -> Self:
        """Load the first questions of a task's test split; raises TaskError."""
        return cls(task, load(task, "test", limit, 0), max_new_tokens)

    @property
    def digest(self) -> str:
        """A hash of everything that determines the outcome, except the model."""
        return hashlib.sha256(f"{fingerprint(self.questions)}:{self.max_new_tokens}".encode()).hexdigest()[:16]

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise OptionError or PromptError if a question does not fit this model."""
        engine, requests = self._prepare(model, tokenizer)
        for row, request in enumerate(requests):
            check_max_new_tokens(request, row, engine.context_length, engine.name)

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        """Whether the model answers each question correctly."""
        (engine, requests), answers = self._prepare(model, tokenizer), dict[int, str]()
        for rows in batches(self.questions, _CHECK_BATCH_SIZE):
            completions = engine.generate([requests[row] for row in rows], SamplingParams(temperature=0))
            texts = (tokenizer.decode(one.token_ids) for one in completions)
            answers.update(zip(rows, (normalize_answer(extract_answer(text)) for text in texts), strict=True))
        with AnswerChecker() as checker:
            return right_answers([(question, answers[i]) for i, question in enumerate(self.questions)], checker)

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

    def _prepare(self, model: Any, tokenizer: Any) -> tuple[Engine, list[Request]]:
        """The engine, and each question in the chat template, or as plain text if there is none."""
        from ..controller.engines.transformers.engine import TransformersEngine
        from ..kernels.quantization.calibration import render_question

        templated = getattr(tokenizer, "chat_template", None)
        prompts = [
            render_question(tokenizer, question.problem) if templated else tokenizer(question.problem)["input_ids"]
            for question in self.questions
        ]
        requests = [Request(tuple(prompt), self.max_new_tokens) for prompt in prompts]
        return TransformersEngine(model, tokenizer), requests
