"""What is measured answers through one face, whatever engine it runs on; and batches that favour no arm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..controller.options import GenerationOptions, with_seed
from ..controller.session import Session
from ..controller.trace import GenerationResult
from ..controller.types import Completion, Engine, FinishReason, Request, SamplingParams, TokenSink
from ..errors import unknown
from .tasks.questions import Question

ENGINES = ("transformers", "vllm")


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote on after a text: ids without the end of sequence, and the probability of each of them."""

    token_ids: tuple[int, ...]
    chances: tuple[float, ...]
    finish_reason: FinishReason


class EvalRunner(Protocol):
    """Answers questions, and writes on after a text.

    session lends tokenizer, markers and context length. made counts the tokens that its engine has put out so far.
    """

    session: Session

    @property
    def made(self) -> int:
        """Tokens put out so far."""
        ...

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        """Answer problems as one batch, in order."""
        ...

    def write_on(
        self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingParams
    ) -> list[Continuation]:
        """Write on after texts, each up to its limit of tokens, in order."""
        ...


class TokenCountingEngine:
    """An engine that counts what it puts out, taken-back tokens included, by no account but its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.capabilities, self.context_length = engine.capabilities, engine.context_length
        self.hidden_layers = getattr(engine, "hidden_layers", None)
        self.made = 0

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        done = self.engine.generate(requests, sampling, sink)
        self.made += sum(len(one.token_ids) + one.dropped + one.trial for one in done)
        return done

    def fingerprint(self) -> str | None:
        """See `Engine.fingerprint`."""
        return self.engine.fingerprint()

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()


class SessionRunner:
    """Answers through a session, as users do. Implements `EvalRunner`.

    engine: what answers, unmetered.
    """

    def __init__(self, engine: Engine, think_prompt: bool = False) -> None:
        self.engine = engine
        self._meter = TokenCountingEngine(engine)
        self.session = Session(self._meter, think_prompt=think_prompt)

    @property
    def made(self) -> int:
        """See `EvalRunner.made`."""
        return self._meter.made

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        """See `EvalRunner.answer`."""
        return self.session.run(problems, options)

    def write_on(
        self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingParams
    ) -> list[Continuation]:
        """See `EvalRunner.write_on`."""
        requests = [Request(tuple(ids), limit, signals=True) for ids, limit in zip(texts, limits, strict=True)]
        done = self._meter.generate(requests, sampling)
        return [
            Continuation(d.token_ids, tuple(s.chosen if s else 1.0 for s in d.signals), d.finish_reason) for d in done
        ]


def load_runner(model: str, engine: str, *, think_prompt: bool = False) -> SessionRunner:
    """Load a model onto an engine; raises OptionError for an unknown engine, ModelError, CapabilityError."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "vllm":
        from ..controller.vllm.engine import load_vllm

        return SessionRunner(load_vllm(model), think_prompt)
    from ..controller.engines.transformers.engine import load_engine

    return SessionRunner(load_engine(model, grouped=True), think_prompt)


def batch_seed(*what: Any) -> int:
    """The sampling seed of one batch, from whatever names it."""
    text = ":".join(["tersely", *map(str, what)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def batches(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Indices of the questions in batches of rows that are likely to be equally long: by level, then by length."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].level or 0, len(questions[i].problem), i))
    return [order[at : at + size] for at in range(0, len(order), size)]


def answer_all(
    answerer: EvalRunner,
    questions: Sequence[Question],
    options: GenerationOptions,
    *,
    seed: int,
    size: int,
    advance: Callable[[int], None] | None = None,
) -> list[GenerationResult]:
    """Answer every question once, in the order given; `advance` is told the rows of each finished batch."""
    done: dict[int, GenerationResult] = {}
    for number, rows in enumerate(batches(questions, size)):
        made = answerer.answer([questions[i].problem for i in rows], with_seed(options, batch_seed(seed, 0, number)))
        done.update(zip(rows, made, strict=True))
        if advance is not None:
            advance(len(rows))
    return [done[i] for i in range(len(questions))]
