"""Running a model on questions, on any engine, in batches of similar rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..controller.options import GenerationOptions, with_seed
from ..controller.session import Session
from ..controller.trace import GenerationResult
from ..controller.types import Completion, Engine, FinishReason, Request, SamplingParams, State, TokenSink
from ..errors import unknown
from .tasks.questions import Question

ENGINES = ("transformers", "vllm")


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


class TokenCountingEngine:
    """Wraps an engine and counts every token that it generates, discarded ones included."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.capabilities, self.context_length = engine.capabilities, engine.context_length
        self.hidden_layers = engine.hidden_layers
        self.generated_tokens = 0

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        completions = self.engine.generate(requests, sampling, sink)
        self.generated_tokens += sum(len(one.token_ids) + one.dropped + one.trial for one in completions)
        return completions

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> list[State]:
        """See `Engine.hidden_states`."""
        return self.engine.hidden_states(prompts, layer)

    def fingerprint(self) -> str | None:
        """See `Engine.fingerprint`."""
        return self.engine.fingerprint()

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()


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
