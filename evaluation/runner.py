"""Running a model on questions, on any engine, in batches of similar rows, and a check of its accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..controller.engines.sequence import check_max_new_tokens
from ..controller.engines.wrapper import EngineWrapper
from ..controller.options import GenerationOptions, with_seed
from ..controller.session import Session
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.trace import GenerationResult
from ..controller.types import Completion, Engine, FinishReason, Request, SamplingParams, TokenSink
from ..errors import unknown
from .stats import paired_bootstrap
from .tasks.equality import AnswerChecker, right_answers
from .tasks.questions import Question, fingerprint, load

ENGINES = ("transformers", "vllm")
_CHECK_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Continuation:
    """A continued text: the new token ids without the end of sequence, and the probability of each."""

    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    finish_reason: FinishReason


class EvalRunner(Protocol):
    """Answers questions, and continues texts; its session provides tokenizer, markers and context length."""

    session: Session

    @property
    def generated_tokens(self) -> int:
        """Tokens that the engine has generated so far, by its own count."""
        ...

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        """Answer problems as one batch, in order."""
        ...

    def continue_from(
        self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingParams
    ) -> list[Continuation]:
        """Continue texts (token ids), each up to its limit of new tokens, in order."""
        ...


class TokenCountingEngine(EngineWrapper):
    """Counts every token that an engine generates, discarded ones included."""

    generated_tokens = 0

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        completions = super().generate(requests, sampling, sink)
        self.generated_tokens += sum(len(one.token_ids) + one.dropped + one.trial for one in completions)
        return completions


class SessionRunner:
    """Answers through a session, as users do. Implements `EvalRunner`.

    `engine` is the engine itself, without the token counter.
    """

    def __init__(self, engine: Engine, think_prompt: bool = False) -> None:
        self.engine = engine
        self._counter = TokenCountingEngine(engine)
        self.session = Session(self._counter, think_prompt=think_prompt)

    @property
    def generated_tokens(self) -> int:
        """See `EvalRunner.generated_tokens`."""
        return self._counter.generated_tokens

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        """See `EvalRunner.answer`."""
        return self.session.run(problems, options)

    def continue_from(
        self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingParams
    ) -> list[Continuation]:
        """See `EvalRunner.continue_from`."""
        requests = [Request(tuple(ids), limit, signals=True) for ids, limit in zip(texts, limits, strict=True)]
        return [
            Continuation(one.token_ids, tuple(s.chosen if s else 1.0 for s in one.signals), one.finish_reason)
            for one in self._counter.generate(requests, sampling)
        ]


def load_runner(model: str, engine: str, *, think_prompt: bool = False) -> SessionRunner:
    """Load a model; raises OptionError for an unknown engine, ModelError, CapabilityError."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "vllm":
        from ..controller.vllm.engine import load_vllm

        return SessionRunner(load_vllm(model), think_prompt)
    from ..controller.engines.transformers.engine import load_engine

    return SessionRunner(load_engine(model, grouped=True), think_prompt)


def batch_seed(*parts: Any) -> int:
    """The sampling seed of one batch, derived from the parts that identify it."""
    text = ":".join(["tersely", *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def batches(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Indices of the questions in batches whose outputs are probably of similar length: by level, then by length."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].level or 0, len(questions[i].problem), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def answer_all(
    runner: EvalRunner,
    questions: Sequence[Question],
    options: GenerationOptions,
    *,
    seed: int,
    size: int,
    advance: Callable[[int], None] | None = None,
) -> list[GenerationResult]:
    """Answer every question once, in order; `advance` is called with the number of rows after each batch."""
    results: dict[int, GenerationResult] = {}
    for number, indices in enumerate(batches(questions, size)):
        seeded = with_seed(options, batch_seed(seed, 0, number))
        results.update(zip(indices, runner.answer([questions[i].problem for i in indices], seeded), strict=True))
        if advance is not None:
            advance(len(indices))
    return [results[i] for i in range(len(questions))]


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
    def load(cls, task: str, limit: int | None, max_new_tokens: int) -> AccuracyCheck:
        """Load the first questions of a task's test split; raises TaskError."""
        return cls(task, load(task, "test", limit, 0), max_new_tokens)

    @property
    def digest(self) -> str:
        """A hash of everything that determines the outcome, except the model."""
        return hashlib.sha256(f"{fingerprint(self.questions)}:{self.max_new_tokens}".encode()).hexdigest()[:16]

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise OptionError or PromptError if a question does not fit this model."""
        from ..controller.engines.transformers.engine import TransformersEngine

        engine = TransformersEngine(model, tokenizer)
        for row, request in enumerate(self._requests(tokenizer)):
            check_max_new_tokens(request, row, engine.context_length, engine.name)

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        """Whether the model answers each question correctly."""
        from ..controller.engines.transformers.engine import TransformersEngine

        engine, requests, texts = TransformersEngine(model, tokenizer), self._requests(tokenizer), dict[int, str]()
        for rows in batches(self.questions, _CHECK_BATCH_SIZE):
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
    from ..kernels.quantization.calibration_text import render_question

    if getattr(tokenizer, "chat_template", None):
        return render_question(tokenizer, problem)
    plain: list[int] = tokenizer(problem)["input_ids"]
    return plain
