"""The continuing engine: what it makes of directives is what the transformers engine makes of them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tersely.controller.engines.openai.backend import Chunk, ServerLostError, StreamError
from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import KEEP, Completion, Directive, Request, SamplingParams, Signals, StepInfo
from tersely.errors import CapabilityError, ModelError, OptionError, PromptError

from ..support.models import VOCABULARY, letters, random_model

GREEDY = SamplingParams(temperature=0)
ENGINE = TransformersEngine(random_model(), letters(), name="random")
PROMPTS = [tuple(random.Random(row).choices(range(3, 29), k=3 + row)) for row in range(6)]


@dataclass
class ModelBackend:
    """Writes what a small model writes on, `size` tokens at a time; breaks off where `breaks` says so."""

    size: int = 1
    context_length: int | None = None
    chances: bool = True
    breaks: Callable[[int], int | None] = lambda number: None
    cap: int = 1 << 20
    name: str = "a small model"
    tokenizer: Any = field(default_factory=letters)
    open_streams: int = 0
    closed: bool = False
    asked: list[tuple[tuple[int, ...], int, SamplingParams]] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, signals: bool
    ) -> AsyncGenerator[Chunk, None]:
        number = len(self.asked)
        self.asked.append((tuple(ids), limit, sampling))
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
                draws = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + written)
                done = ENGINE.generate([Request(tuple(ids), size, signals=signals)], draws)[0]
                stop = done.finish_reason == "stop"
                made, said = (*done.token_ids, *[1] * stop), tuple(s for s in done.signals if s)
                ids, written = (*ids, *made), written + len(made)
                full = written >= min(limit, self.cap)
                yield Chunk(
                    made,
                    (*said, *[Signals(0.0, 1.0, 1.0)] * (stop and signals)),
                    "stop" if stop else "length" if full else None,
                )
                if stop or full:
                    return
        finally:
            self.open_streams -= 1


@contextmanager
def engine_on(backend: ModelBackend, **options: Any) -> Any:
    engine = RemoteEngine(backend, **options)
    try:
        yield engine
    finally:
        engine.close()
        assert backend.open_streams == 0 and backend.closed


class Wild:
    """Forces, drops, rests and tries as a seed draws."""

    def __init__(self, seed: int, rate: float = 0.15) -> None:
        self.rng, self.rate, self.size, self.trial = random.Random(seed), rate, 0, 0
        self.coming: tuple[int, ...] = ()
        self.back = 0
        self.heard: list[int] = []

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        self.heard.append(token)
        self.size += 1
        if self.trial:
            self.trial += 1
            if self.trial < 6:
                return KEEP
            size, self.trial = self.trial, 0
            self.size -= size
            return Directive(self._some(), drop=size, trial=False) if size else KEEP
        if self.rng.random() > self.rate:
            return KEEP
        drop = min(self.rng.randint(0, 4), self.size)
        kind, force = self.rng.choice(("force", "rest", "trial")), self._some()
        if kind == "trial":
            self.trial = len(force)
            self.size += len(force)
            return Directive(force, trial=True)
        self.size += len(force) - drop
        if kind == "rest":
            self.back = min(self.rng.randint(0, 4), self.size)
            self.coming = self._some()
            self.size += len(self.coming) - self.back
            return Directive(force, drop, until=Done())
        return Directive(force, drop)

    def resume(self) -> Directive:
        return Directive(self.coming, self.back)

    def _some(self) -> tuple[int, ...]:
        return tuple(self.rng.choices(range(3, VOCABULARY), k=self.rng.randint(1, 5)))


@dataclass
class Done:
    done: bool = True

    def wait(self) -> None:
        pass


class Script:
    """Does given directives after given numbers of tokens; notes what it heard and how the row ended."""

    def __init__(self, at: dict[int, Directive], resume: Directive = KEEP) -> None:
        self.at, self.then = at, resume
        self.heard: list[int] = []
        self.seen: list[StepInfo | None] = []
        self.end: Completion | None = None

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        self.heard.append(token)
        self.seen.append(seen)
        return self.at.get(len(self.heard), KEEP)

    def resume(self) -> Directive:
        return self.then

    def ended(self, done: Completion) -> None:
        self.end = done


def plain(done: Completion) -> Completion:
    """Without what only a continuing engine counts."""
    return replace(done, reprefilled=0)


def wild(seed: int = 0) -> list[Request]:
    return [Request(prompt, 60, Wild(seed + row)) for row, prompt in enumerate(PROMPTS)]


def test_all_directives_come_to_what_the_transformers_engine_makes_of_them() -> None:
    with engine_on(ModelBackend()) as engine:
        for seed in range(0, 24, 6):
            told: list[list[tuple[int, bool]]] = [[] for _ in PROMPTS]

            def sink(row: int, tokens: Sequence[int], forced: bool, told: Any = told) -> None:
                told[row].extend((token, forced) for token in tokens)
                if not tokens:
                    told[row].pop()

            expected, requests = ENGINE.generate(wild(seed), GREEDY), wild(seed)
            found = engine.generate(requests, GREEDY, sink)
            assert [plain(done) for done in found] == expected
            for done, row in zip(found, told, strict=True):
                assert tuple(token for token, _ in row)[: len(done.token_ids)] == done.token_ids
                assert tuple(forced for _, forced in row)[: len(done.token_ids)] == done.forced
    assert sum(done.trial for done in found) > 0 and sum(done.dropped for done in found) > 0


def test_tokens_that_came_too_late_are_shown_to_nobody_and_counted() -> None:
    expected, finest = wild(), wild()
    known = ENGINE.generate(expected, GREEDY)
    with engine_on(ModelBackend(size=7)) as engine:
        found = engine.generate(finest, GREEDY)
    assert [(d.token_ids, d.forced, d.finish_reason) for d in found] == [
        (d.token_ids, d.forced, d.finish_reason) for d in known
    ]
    assert [r.watcher.heard for r in finest] == [r.watcher.heard for r in expected]  # type: ignore[union-attr]
    assert sum(d.dropped for d in found) > sum(d.dropped for d in known)
    with engine_on(ModelBackend(size=5)) as engine:
        script = Script({7: Directive((9, 9), drop=2)})
        done = engine.generate([Request(PROMPTS[0], 20, script)], GREEDY)[0]
    assert done.dropped == 2 + 3, "two taken back, and three of the ten that had come"
    assert done.reprefilled == len(PROMPTS[0]) + 5, "all but what was forced is read once more"
    assert script.end == done


def test_trials_are_greedy_taken_back_and_counted() -> None:
    backend = ModelBackend(size=4)
    trial = {3: Directive((8, 9), trial=True), 6: Directive(drop=5, trial=False)}
    with engine_on(backend) as engine:
        done = engine.generate([Request(PROMPTS[0], 12, Script(trial))], SamplingParams(temperature=1.0, seed=4))[0]
    warm, cold, after = (sampling for _, _, sampling in backend.asked)
    assert cold.temperature == 0 and cold.seed is None
    assert warm.temperature == after.temperature == 1.0 and warm.seed != after.seed
    assert backend.asked[2][0] == (*PROMPTS[0], *done.token_ids[:3])
    assert (done.trial, done.dropped) == (5 + 1, 1), "of two streams of four the last token came too late"


def test_a_seed_decides_what_is_drawn_and_rows_draw_apart() -> None:
    twice = [Request(PROMPTS[3], 20), Request(PROMPTS[3], 20, temperature=0.7)]
    with engine_on(ModelBackend()) as engine:
        one, other, again = (engine.generate(twice, SamplingParams(temperature=1.5, seed=s)) for s in (1, 2, 1))
        assert [d.token_ids for d in one] == [d.token_ids for d in again] != [d.token_ids for d in other]
        assert one[0].token_ids != one[1].token_ids
        assert {sampling.temperature for _, _, sampling in engine.backend.asked} == {1.5, 0.7}
        engine.backend.asked.clear()
        engine.generate(twice, GREEDY)
        assert {sampling.temperature for _, _, sampling in engine.backend.asked} == {0}


class Wakes:
    """Done once it is told to be; waited for in a thread of its own."""

    def __init__(self) -> None:
        self.done, self.event, self.thread = False, threading.Event(), ""

    def wait(self) -> None:
        self.thread = threading.current_thread().name
        self.done = self.event.wait(20)


def test_a_row_rests_while_others_go_on() -> None:
    pending = Wakes()
    resting = Script({4: Directive((7,), until=pending)}, Directive((9, 9)))
    other = Script({})
    other.ended = lambda done: pending.event.set()  # type: ignore[method-assign, assignment]
    with engine_on(ModelBackend()) as engine:
        done = engine.generate([Request(PROMPTS[0], 20, resting), Request(PROMPTS[1], 20, other)], GREEDY)
    assert pending.done, "the other row ended while this one rested"
    assert pending.thread.startswith("tersely rest")
    assert done[0].token_ids[4:7] == (7, 9, 9) and done[0].forced[4:7] == (True,) * 3
    assert done[0].reprefilled == len(PROMPTS[0]) + 4


def test_a_watcher_may_end_its_row() -> None:
    with engine_on(ModelBackend()) as engine:
        scripts = [Script({3: Directive(stop=True)}), Script({3: Directive((5, 6), drop=1, stop=True)})]
        done = engine.generate([Request(PROMPTS[0], 20, script) for script in scripts], GREEDY)
        assert [d.finish_reason for d in done] == ["stopped", "stopped"]
        assert [len(d.token_ids) for d in done] == [3, 4]
        assert len(engine.backend.asked) == 2, "a row that has ended is not submitted again"


def test_a_forced_end_of_sequence_ends_a_row() -> None:
    with engine_on(ModelBackend()) as engine:
        done = engine.generate([Request(PROMPTS[0], 20, Script({3: Directive((5, 1, 6))}))], GREEDY)[0]
    assert (len(done.token_ids), done.finish_reason) == (4, "stop")


def test_signals_are_passed_on_without_what_is_not_known() -> None:
    script = Script({2: Directive((5,))})
    with engine_on(ModelBackend(size=3)) as engine:
        done = engine.generate([Request(PROMPTS[0], 6, script, signals=True)], GREEDY)[0]
        assert engine.capabilities == {"crop", "retract", "chances"}
    assert [one is None for one in done.signals] == [False, False, True, False, False, False]
    assert [seen.signals for seen in script.seen if seen] == [one for one in done.signals if one]
    with engine_on(ModelBackend(chances=False)) as engine:
        assert engine.capabilities == {"crop", "retract"}
        with pytest.raises(CapabilityError, match="asks for signals"):
            engine.generate([Request(PROMPTS[0], 6, signals=True)], GREEDY)


def test_limits_and_what_no_server_can_do() -> None:
    with engine_on(ModelBackend(context_length=20)) as engine:
        assert engine.generate([], GREEDY) == []
        assert len(engine.generate([Request(PROMPTS[0], 99)], GREEDY)[0].token_ids) == 17
        for request, error, said in (
            (Request((), 5), PromptError, "request 1 is empty"),
            (Request((5,) * 20, 5), PromptError, "takes 20 in all"),
            (Request((5,), 0), OptionError, "at least 1"),
            (Request((5,), 5, layers=(1,)), CapabilityError, "hidden states"),
        ):
            with pytest.raises(error, match=said):
                engine.generate([Request((5,), 1), request], GREEDY)
        backend = engine.backend
        trial = Script({10: Directive((5,), trial=True), 12: Directive(drop=3, trial=False)})
        engine.generate([Request(PROMPTS[0], 17, trial)], GREEDY)
        assert all(len(ids) + limit <= 20 for ids, limit, _ in backend.asked)
    with pytest.raises(ModelError, match="was closed"):
        engine.generate([Request((5,), 1)], GREEDY)
    engine.close()


def test_a_server_may_end_a_row_before_its_limit() -> None:
    with engine_on(ModelBackend(cap=5)) as engine:
        done = engine.generate([Request(PROMPTS[0], 30)], GREEDY)[0]
    assert (len(done.token_ids), done.finish_reason) == (5, "length")


def test_lost_streams_are_taken_up_where_they_broke_off() -> None:
    expected = ENGINE.generate([Request(p, 16) for p in PROMPTS], GREEDY)
    with engine_on(ModelBackend(size=2, breaks=lambda number: number % 6 if number < 12 else 5)) as engine:
        found = engine.generate([Request(p, 16) for p in PROMPTS], GREEDY)
    assert [d.token_ids for d in found] == [d.token_ids for d in expected]
    assert sum(d.reprefilled for d in found) > 0


def test_a_backend_that_is_lost_for_good_is_an_error_with_what_was_written() -> None:
    short = ModelBackend(size=2, breaks=lambda number: 4 if number == 0 else 0)
    with engine_on(short, retries=2) as engine:
        with pytest.raises(
            ServerLostError, match=r"lost after 4 tokens of 1 row\(s\), and going on failed 2 times \(cut\)"
        ) as caught:
            engine.generate([Request(PROMPTS[0], 30)], GREEDY)
        known = ENGINE.generate([Request(PROMPTS[0], 4)], GREEDY)[0].token_ids
        assert caught.value.completions[0].token_ids == known
        assert len(short.asked) == 1 + 2


def test_what_a_watcher_raises_ends_the_call_and_all_streams() -> None:
    class Fails(Script):
        def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
            raise ZeroDivisionError("a watcher's own")

    backend = ModelBackend()
    with engine_on(backend) as engine:
        with pytest.raises(ZeroDivisionError, match="own"):
            engine.generate([Request(PROMPTS[0], 60, Script({})), Request(PROMPTS[1], 60, Fails({}))], GREEDY)
        assert backend.open_streams == 0
        assert len(engine.generate([Request(PROMPTS[0], 3)], GREEDY)[0].token_ids) == 3


def test_an_interrupt_closes_all_streams() -> None:
    backend = ModelBackend(gate=asyncio.Event())
    with engine_on(backend) as engine:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate([Request(p, 60) for p in PROMPTS], GREEDY)
        assert len(backend.asked) == len(PROMPTS) and backend.open_streams == 0
        timer.join()


def test_closing_ends_what_is_under_way() -> None:
    backend = ModelBackend(gate=asyncio.Event())
    engine = RemoteEngine(backend)
    timer = threading.Timer(0.3, engine.close)
    timer.start()
    with pytest.raises(ModelError, match="was closed before it was done"):
        engine.generate([Request(PROMPTS[0], 60)], GREEDY)
    timer.join()
    assert backend.open_streams == 0 and backend.closed


def test_callers_with_a_loop_of_their_own() -> None:
    expected = ENGINE.generate([Request(p, 20) for p in PROMPTS], GREEDY)
    backend = ModelBackend()

    async def both() -> list[Completion]:
        done: list[Completion] = await engine.agenerate([Request(p, 20) for p in PROMPTS], GREEDY)
        backend.gate = asyncio.Event()
        task = asyncio.create_task(engine.agenerate([Request(p, 20) for p in PROMPTS], GREEDY))
        await asyncio.sleep(0.2)
        assert backend.open_streams == len(PROMPTS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(100):
            if not backend.open_streams:
                break
            await asyncio.sleep(0.02)
        assert backend.open_streams == 0
        return done

    with engine_on(backend) as engine:
        assert [d.token_ids for d in asyncio.run(both())] == [d.token_ids for d in expected]
