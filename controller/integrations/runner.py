"""Runs calls on engines that several callers share: batches, cancellation, and streams for sync and async readers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import TerselyError
from ..api import resolve_engine
from ..cancellation import CancellableWatcher
from ..options import GenerationOptions
from ..request_builder import PreparedRequest
from ..session import Session
from ..streaming import StreamEmitter, TextDeltaEvent
from ..text.reasoning_parser import ReasoningParser, TextDelta, truncate_at_stop
from ..trace import GenerationResult
from ..types import Engine, Prompt, Request

_GUARD = threading.Lock()
_RUNNERS: WeakKeyDictionary[Engine, BatchRunner] = WeakKeyDictionary()


def shared_engine(model: Any) -> Engine:
    """The engine of a model, loaded once however many threads ask for it."""
    with _GUARD:
        return resolve_engine(model)


def get_runner(engine: Engine) -> BatchRunner:
    """The runner of an engine, shared by all its callers."""
    with _GUARD:
        return _RUNNERS.setdefault(engine, BatchRunner())


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to answer."""

    session: Session
    prompt: Prompt
    options: GenerationOptions
    stops: tuple[str, ...] = ()  # strings that end the answer; the thinking is not searched for them
    hide: str = ""  # the answer is not streamed from this text on, such as the start of a tool call
    model: str = ""  # the name to report


class BatchRunner:
    """Runs calls on one engine, one batch at a time.

    Cancelling a future that `submit` returned with `cancellable` stops its sequence at the next token, or takes a
    waiting call out of the queue. `lock` is held while the engine is used.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def generate(self, call: Call) -> GenerationResult:
        """Answer one call, in this thread."""
        batch = _Batch([call])
        batch.run(self.lock)
        return batch.futures[0].result()

    def submit(self, calls: Sequence[Call], cancellable: bool = False) -> list[Future[GenerationResult]]:
        """Answer calls of one model with the same options as one batch, in the background."""
        batch = _Batch(calls, cancellable=cancellable)
        if calls:
            self._start(batch)
        return batch.futures

    def stream(self, call: Call) -> Generator[TextDelta | GenerationResult, None, None]:
        """Yield an answer's deltas, then its result. Closing the generator stops the sequence and waits for that."""
        queue: SimpleQueue[TextDelta | None] = SimpleQueue()
        batch = _Batch([call], queue.put)
        thread = self._start(batch)
        try:
            while (delta := queue.get()) is not None:
                yield delta
            yield batch.futures[0].result()
        finally:
            batch.futures[0].cancel()
            thread.join()

    async def astream(self, call: Call) -> AsyncGenerator[TextDelta | GenerationResult, None]:
        """Yield an answer's deltas, then its result. Closing the generator stops the sequence without waiting."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[TextDelta | None] = asyncio.Queue()

        def emit(delta: TextDelta | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(queue.put_nowait, delta)

        batch = _Batch([call], emit)
        self._start(batch)
        try:
            while (delta := await queue.get()) is not None:
                yield delta
            yield batch.futures[0].result()
        finally:
            batch.futures[0].cancel()

    def _start(self, batch: _Batch) -> threading.Thread:
        thread = threading.Thread(target=batch.run, args=(self.lock,), name="tersely-runner")
        thread.start()
        return thread


class _Batch:
    """Calls that are answered together, and the futures of their results.

    `emit` receives the deltas of a single call, and None after the last one; its sequence is always cancellable.
    """

    def __init__(
        self, calls: Sequence[Call], emit: Callable[[TextDelta | None], None] | None = None, cancellable: bool = False
    ) -> None:
        self.calls, self.emit = calls, emit
        self.cancellable = cancellable or emit is not None
        self.futures: list[Future[GenerationResult]] = [Future() for _ in calls]

    def run(self, lock: threading.Lock) -> None:
        """Resolve all futures; errors become those of their calls."""
        try:
            with lock:
                self._generate(self._prepare())
        except BaseException as error:
            for future in self.futures:
                _resolve(future, error)
        finally:
            if self.emit is not None:
                self.emit(None)

    def _prepare(self) -> list[tuple[int, PreparedRequest]]:
        """The prepared calls with their indices, without cancelled ones; an error concerns its own call only."""
        prepared: list[tuple[int, PreparedRequest]] = []
        for index, (call, future) in enumerate(zip(self.calls, self.futures, strict=True)):
            if future.cancelled():
                continue
            try:
                (row,) = call.session.prepare([call.prompt], call.options)
            except TerselyError as error:
                _resolve(future, error)
            else:
                prepared.append((index, row))
        return prepared

    def _generate(self, prepared: Sequence[tuple[int, PreparedRequest]]) -> None:
        if not prepared:
            return
        call, rows = self.calls[0], [row for _, row in prepared]
        futures = [self.futures[index] for index, _ in prepared]
        parsers = [ReasoningParser(call.session.markers, row.state, call.stops, call.hide) for row in rows]
        requests, emitter = [row.request for row in rows], None
        if self.emit is not None or call.stops:

            def emit(event: TextDeltaEvent) -> None:
                if self.emit is not None and event.text and not futures[event.row].cancelled():
                    self.emit(TextDelta(event.channel, event.text))

            emitter = StreamEmitter(call.session.codec, call.session.markers, rows, emit, parsers)
        if self.cancellable or call.stops:
            requests = [_watch(*item) for item in zip(requests, futures, parsers, strict=True)]
        completions = call.session.engine.generate(requests, call.options.sampling, emitter)
        call.session.end_batch(rows, call.options)
        for number, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            result = call.session.finish(row, completion)
            answer, stopped = truncate_at_stop(result.answer, call.stops)
            if stopped:
                result = replace(result, answer=answer, finish_reason="stop")
            if emitter is not None:
                emitter.finish_row(number, result.thinking, truncate_at_stop(answer, [call.hide])[0])
            _resolve(futures[number], result)


def _watch(request: Request, future: Future[GenerationResult], parser: ReasoningParser) -> Request:
    """The request, stopped once its future is cancelled or its answer contains a stop string."""
    return CancellableWatcher(lambda: future.cancelled() or parser.stopped).wrap(request)


def _resolve(future: Future[GenerationResult], outcome: GenerationResult | BaseException) -> None:
    """Set a future's result or exception, unless it is done or cancelled."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
