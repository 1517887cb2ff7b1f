"""The remote engine: directives have the same effect as on the transformers engine."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tersely.controller.engines.openai import Chunk, ServerLostError, StreamError
from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import (
    KEEP,
    Capability,
    Completion,
    Directive,
    Request,
    SamplingParams,
    Signals,
    StepInfo,
)
from tersely.errors import CapabilityError, ModelError, OptionError, PromptError

from ..support.models import VOCABULARY, letters, random_model
from ..support.refusals import refused

GREEDY = SamplingParams(temperature=0)
ENGINE = TransformersEngine(random_model(), letters(), name="random")
PROMPTS = [tuple(random.Random(row).choices(range(3, 29), k=3 + row)) for row in range(6)]


@dataclass
class ModelBackend:
    """Generates with a small model, `size` tokens at a time.

    Attributes:
        breaks: after how many tokens each stream breaks, by its number; None for never.
        cap: most tokens of a stream.
        gate: waited for after the first tokens.
    """

    size: int = 1
    context_length: int | None = None
    has_logprobs: bool = True
    breaks: Callable[[int], int | None] = lambda number: None
    cap: int = 1 << 20
    name: str = "a small model"
    tokenizer: Any = field(default_factory=letters)
    open_streams: int = 0
    closed: bool = False
    requests: list[tuple[tuple[int, ...], int, SamplingParams]] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, logprobs: int
    ) -> AsyncGenerator[Chunk, None]:
        number = len(self.requests)
        self.requests.append((tuple(ids), limit, sampling))
        self.open_streams += 1
        try:
            left = self.breaks(number)
            written = 0
            while True:
                await asyncio.sleep(0)
                if self.gate is not None and written:
                    await self.gate.wait()
                if left is not None and written >= left:
                    raise StreamError("cut")
                size = min(self.size, limit - written, self.cap - written)
                seeded = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + written)
                done = ENGINE.generate([Request(tuple(ids), size, signals=logprobs > 0)], seeded)[0]
                stop = done.finish_reason == "stop"
                new_ids, known = (*done.token_ids, *[1] * stop), tuple(s for s in done.signals if s)
                ids, written = (*ids, *new_ids), written + len(new_ids)
                full = written >= min(limit, self.cap)
                yield Chunk(
                    new_ids,
                    (*known, *[Signals(0.0, 1.0, 1.0)] * (stop and logprobs > 0)),
                    "stop" if stop else "length" if full else None,
                )
                if stop or full:
                    return
        finally:
            self.open_streams -= 1


@contextmanager
def open_engine(backend: ModelBackend, **options: Any) -> Any:
    engine = RemoteEngine(backend, **options)
    try:
        yield engine
    finally:
        engine.close()
        assert backend.open_streams == 0 and backend.closed


class RandomWatcher:
    """Forces, retracts, suspends and tries at random, by a seed."""

    def __init__(self, seed: int, rate: float = 0.15) -> None:
        self.rng, self.rate, self.size, self.trial = random.Random(seed), rate, 0, 0
        self.next_force: tuple[int, ...] = ()
        self.next_retract = 0
        self.observed: list[int] = []

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.observed.append(token)
        self.size += 1
        if self.trial:
            self.trial += 1
            if self.trial < 6:
                return KEEP
            size, self.trial = self.trial, 0
            self.size -= size
            return Directive(self._some(), retract=size, trial=False) if size else KEEP
        if self.rng.random() > self.rate:
            return KEEP
        retract = min(self.rng.randint(0, 4), self.size)
        kind, force = self.rng.choice(("force", "wait", "trial")), self._some()
        if kind == "trial":
            self.trial = len(force)
            self.size += len(force)
            return Directive(force, trial=True)
        self.size += len(force) - retract
        if kind == "wait":
            self.next_retract = min(self.rng.randint(0, 4), self.size)
            self.next_force = self._some()
            self.size += len(self.next_force) - self.next_retract
            done: Future[None] = Future()
            done.set_result(None)
            return Directive(force, retract, wait_for=done)
        return Directive(force, retract)

    def resume(self) -> Directive:
        return Directive(self.next_force, self.next_retract)

    def _some(self) -> tuple[int, ...]:
        return tuple(self.rng.choices(range(3, VOCABULARY), k=self.rng.randint(1, 5)))


class ScriptedWatcher:
    """Returns directives after given numbers of tokens; keeps what it observed and how the sequence ended."""

    def __init__(self, directives: dict[int, Directive], resume: Directive = KEEP) -> None:
        self.directives, self.after_wait = directives, resume
        self.observed: list[int] = []
        self.steps: list[StepInfo | None] = []
        self.completion: Completion | None = None

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.observed.append(token)
        self.steps.append(step)
        return self.directives.get(len(self.observed), KEEP)

    def resume(self) -> Directive:
        return self.after_wait

    def on_finish(self, completion: Completion) -> None:
        self.completion = completion


def without_recomputed(completion: Completion) -> Completion:
    """Without what only a remote engine counts."""
    return replace(completion, recomputed=0)


def random_requests(seed: int = 0) -> list[Request]:
    return [Request(prompt, 60, RandomWatcher(seed + index)) for index, prompt in enumerate(PROMPTS)]


def test_directives_have_the_same_effect_as_on_transformers() -> None:
    with open_engine(ModelBackend()) as engine:
        told: list[list[tuple[int, bool]]] = [[] for _ in PROMPTS]

        def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
            told[row].extend((token, forced) for token in tokens)
            if not tokens:
                told[row].pop()

        expected, requests = ENGINE.generate(random_requests(6), GREEDY), random_requests(6)
        found = engine.generate(requests, GREEDY, sink)
        assert [without_recomputed(done) for done in found] == expected
        for done, row in zip(found, told, strict=True):
            assert tuple(token for token, _ in row)[: len(done.token_ids)] == done.token_ids
            assert tuple(forced for _, forced in row)[: len(done.token_ids)] == done.forced
    assert sum(done.trial for done in found) > 0 and sum(done.dropped for done in found) > 0


def test_late_tokens_are_not_observed_but_counted() -> None:
    expected, finest = random_requests(), random_requests()
    known = ENGINE.generate(expected, GREEDY)
    with open_engine(ModelBackend(size=7)) as engine:
        found = engine.generate(finest, GREEDY)
    assert [(d.token_ids, d.forced, d.finish_reason) for d in found] == [
        (d.token_ids, d.forced, d.finish_reason) for d in known
    ]
    assert [r.watcher.observed for r in finest] == [r.watcher.observed for r in expected]  # type: ignore[union-attr]
    assert sum(d.dropped for d in found) > sum(d.dropped for d in known)
    with open_engine(ModelBackend(size=5)) as engine:
        script = ScriptedWatcher({7: Directive((9, 9), retract=2)})
        done = engine.generate([Request(PROMPTS[0], 20, script)], GREEDY)[0]
    assert done.dropped == 2 + 3, "two retracted, and three of the ten that had arrived"
    assert done.recomputed == len(PROMPTS[0]) + 5, "all but the forced tokens is read once more"
    assert script.completion == done


def test_trials_are_greedy_dropped_and_counted() -> None:
    backend = ModelBackend(size=4)
    trial = {3: Directive((8, 9), trial=True), 6: Directive(retract=5, trial=False)}
    with open_engine(backend) as engine:
        done = engine.generate(
            [Request(PROMPTS[0], 12, ScriptedWatcher(trial))], SamplingParams(temperature=1.0, seed=4)
        )[0]
    warm, cold, after = (sampling for _, _, sampling in backend.requests)
    assert cold.temperature == 0 and cold.seed is None
    assert warm.temperature == after.temperature == 1.0 and warm.seed != after.seed
    assert backend.requests[2][0] == (*PROMPTS[0], *done.token_ids[:3])
    assert (done.trial, done.dropped) == (5 + 1, 1), "the last token of each of two streams of four was late"


def test_a_seed_decides_the_tokens_and_sequences_differ() -> None:
    twice = [Request(PROMPTS[3], 20), Request(PROMPTS[3], 20, temperature=0.7)]
    with open_engine(ModelBackend()) as engine:
        one, other, again = (engine.generate(twice, SamplingParams(temperature=1.5, seed=s)) for s in (1, 2, 1))
        assert [d.token_ids for d in one] == [d.token_ids for d in again] != [d.token_ids for d in other]
        assert one[0].token_ids != one[1].token_ids
        assert {sampling.temperature for _, _, sampling in engine.backend.requests} == {1.5, 0.7}
        engine.backend.requests.clear()
        engine.generate(twice, GREEDY)
        assert {sampling.temperature for _, _, sampling in engine.backend.requests} == {0}


class RecordingFuture(Future[None]):
    """Keeps the name of the thread that waited for it."""

    thread = ""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.thread = self.thread or threading.current_thread().name
        return super().exception(timeout)


def test_a_sequence_waits_while_others_continue() -> None:
    future = RecordingFuture()
    waiting = ScriptedWatcher({4: Directive((7,), wait_for=future)}, Directive((9, 9)))
    other = ScriptedWatcher({})
    other.on_finish = lambda completion: future.set_result(None)  # type: ignore[method-assign]
    with open_engine(ModelBackend()) as engine:
        done = engine.generate([Request(PROMPTS[0], 20, waiting), Request(PROMPTS[1], 20, other)], GREEDY)
    assert future.done(), "the other sequence ended while this one waited"
    assert future.thread.startswith("tersely waiter")
    assert done[0].token_ids[4:7] == (7, 9, 9) and done[0].forced[4:7] == (True,) * 3
    assert done[0].recomputed == len(PROMPTS[0]) + 4


def test_a_failed_or_cancelled_future_only_resumes_the_sequence() -> None:
    failed, cancelled = Future[None](), Future[None]()
    failed.set_exception(ValueError("a helper's own"))
    cancelled.cancel()
    watchers = [ScriptedWatcher({4: Directive((7,), wait_for=f)}, Directive((9,))) for f in (failed, cancelled)]
    with open_engine(ModelBackend()) as engine:
        done = engine.generate([Request(PROMPTS[0], 20, watcher) for watcher in watchers], GREEDY)
    assert [one.token_ids[4:6] for one in done] == [(7, 9)] * 2


def test_a_watcher_may_end_its_sequence() -> None:
    with open_engine(ModelBackend()) as engine:
        scripts = [
            ScriptedWatcher({3: Directive(stop=True)}),
            ScriptedWatcher({3: Directive((5, 6), retract=1, stop=True)}),
        ]
        done = engine.generate([Request(PROMPTS[0], 20, script) for script in scripts], GREEDY)
        assert [d.finish_reason for d in done] == ["stopped", "stopped"]
        assert [len(d.token_ids) for d in done] == [3, 4]
        assert len(engine.backend.requests) == 2, "a sequence that has ended is not submitted again"


def test_a_forced_end_of_sequence_ends_the_sequence() -> None:
    with open_engine(ModelBackend()) as engine:
        scripts = [ScriptedWatcher({3: Directive(force)}) for force in ((5, 1), (5, 1, 6))]
        last, within = engine.generate([Request(PROMPTS[0], 20, script) for script in scripts], GREEDY)
    assert (len(last.token_ids), last.finish_reason) == (4, "stop")
    assert within.token_ids[3:6] == (5, 1, 6), "it ends nothing in the middle of a text"


def test_signals_reach_watchers_and_completions() -> None:
    script = ScriptedWatcher({2: Directive((5,))})
    with open_engine(ModelBackend(size=3)) as engine:
        done = engine.generate([Request(PROMPTS[0], 6, script, signals=True)], GREEDY)[0]
        assert engine.capabilities == {
            Capability.KV_ROLLBACK,
            Capability.TRIALS,
            Capability.RETRACT,
            Capability.LOGPROBS,
            Capability.TOP_LOGPROBS,
        }
    assert [one is None for one in done.signals] == [False, False, True, False, False, False]
    assert [step.signals for step in script.steps if step] == [one for one in done.signals if one]
    with open_engine(ModelBackend(has_logprobs=False)) as engine:
        assert engine.capabilities == {Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RETRACT}
        with refused(CapabilityError):
            engine.generate([Request(PROMPTS[0], 6, signals=True)], GREEDY)


def test_limits_and_unsupported_requests_are_refused() -> None:
    with open_engine(ModelBackend(context_length=20)) as engine:
        assert engine.generate([], GREEDY) == []
        assert len(engine.generate([Request(PROMPTS[0], 99)], GREEDY)[0].token_ids) == 17
        modifier: Any = object()
        for request, error in (
            (Request((), 5), PromptError),
            (Request((5,) * 20, 5), PromptError),
            (Request((5,), 0), OptionError),
            (Request((5,), 5, layers=(1,)), CapabilityError),
            (Request((5,), 5, modifiers=(modifier,)), CapabilityError),
        ):
            with pytest.raises(error):
                engine.generate([Request((5,), 1), request], GREEDY)
        assert engine.hidden_layers == ()
        with pytest.raises(CapabilityError):
            engine.hidden_states([(5,)], 1)
        backend = engine.backend
        trial = ScriptedWatcher({10: Directive((5,), trial=True), 12: Directive(retract=3, trial=False)})
        engine.generate([Request(PROMPTS[0], 17, trial)], GREEDY)
        assert all(len(ids) + limit <= 20 for ids, limit, _ in backend.requests)
    with pytest.raises(ModelError) as closed:
        engine.generate([Request((5,), 1)], GREEDY)
    assert closed.value.code == "engine_closed"
    engine.close()


def test_a_server_may_end_a_sequence_before_its_limit() -> None:
    with open_engine(ModelBackend(cap=5)) as engine:
        done = engine.generate([Request(PROMPTS[0], 30)], GREEDY)[0]
    assert (len(done.token_ids), done.finish_reason) == (5, "length")


def test_lost_streams_are_resumed_where_they_broke() -> None:
    expected = ENGINE.generate([Request(p, 16) for p in PROMPTS], GREEDY)
    with open_engine(ModelBackend(size=2, breaks=lambda number: number % 6 if number < 12 else 5)) as engine:
        found = engine.generate([Request(p, 16) for p in PROMPTS], GREEDY)
    assert [d.token_ids for d in found] == [d.token_ids for d in expected]
    assert sum(d.recomputed for d in found) > 0


def test_a_lost_backend_is_an_error_with_the_partial_output() -> None:
    short = ModelBackend(size=2, breaks=lambda number: 4 if number == 0 else 0)
    with open_engine(short, retries=2) as engine:
        with pytest.raises(ServerLostError) as caught:
            engine.generate([Request(PROMPTS[0], 30)], GREEDY)
        known = ENGINE.generate([Request(PROMPTS[0], 4)], GREEDY)[0].token_ids
        assert caught.value.completions[0].token_ids == known
        assert caught.value.code == "server_lost"
        assert len(short.requests) == 1 + 2


def test_an_exception_of_a_watcher_ends_the_call_and_all_streams() -> None:
    class Fails(ScriptedWatcher):
        def observe(self, token: int, step: StepInfo | None = None) -> Directive:
            raise ZeroDivisionError("a watcher's own")

    backend = ModelBackend()
    with open_engine(backend) as engine:
        with pytest.raises(ZeroDivisionError):
            engine.generate([Request(PROMPTS[0], 60, ScriptedWatcher({})), Request(PROMPTS[1], 60, Fails({}))], GREEDY)
        assert backend.open_streams == 0
        assert len(engine.generate([Request(PROMPTS[0], 3)], GREEDY)[0].token_ids) == 3


def test_an_interrupt_closes_all_streams() -> None:
    backend = ModelBackend(gate=asyncio.Event())
    with open_engine(backend) as engine:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate([Request(p, 60) for p in PROMPTS], GREEDY)
        assert len(backend.requests) == len(PROMPTS) and backend.open_streams == 0
        timer.join()


def test_closing_ends_running_calls() -> None:
    backend = ModelBackend(gate=asyncio.Event())
    engine = RemoteEngine(backend)
    timer = threading.Timer(0.3, engine.close)
    timer.start()
    with pytest.raises(ModelError) as error:
        engine.generate([Request(PROMPTS[0], 60)], GREEDY)
    assert error.value.code == "engine_closed"
    timer.join()
    assert backend.open_streams == 0 and backend.closed


def test_agenerate_runs_in_the_callers_loop_and_can_be_cancelled() -> None:
    expected = ENGINE.generate([Request(p, 20) for p in PROMPTS], GREEDY)
    backend = ModelBackend()

    async def both() -> list[Completion]:
        done: list[Completion] = await engine.agenerate([Request(p, 20) for p in PROMPTS], GREEDY)
        backend.gate = asyncio.Event()
        task = asyncio.create_task(engine.agenerate([Request(p, 20) for p in PROMPTS], GREEDY))
        async with asyncio.timeout(60):
            while backend.open_streams < len(PROMPTS):
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while backend.open_streams:
                await asyncio.sleep(0.02)
        return done

    with open_engine(backend) as engine:
        assert [d.token_ids for d in asyncio.run(both())] == [d.token_ids for d in expected]
