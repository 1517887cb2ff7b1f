"""Answering prompts for LangChain: one caller of an engine at a time, rows that end when nobody reads them any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ...api import resolve_engine
from ...cancellation import CancellableWatcher
from ...options import GenerationOptions
from ...request_builder import PreparedRequest
from ...session import Session
from ...streaming import StreamEmitter, TextDeltaEvent
from ...text.reasoning_parser import ReasoningParser, truncate_at_stop
from ...trace import GenerationResult
from ...types import Engine, Prompt

_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
_LOADED: WeakValueDictionary[str, Engine] = WeakValueDictionary()


def engine_lock(engine: Engine) -> threading.Lock:
    """The lock of an engine, which runs one batch at a time."""
    with _GUARD:
        return _LOCKS.setdefault(engine, threading.Lock())


def shared_engine(name: str) -> Engine:
    """The engine of a name or folder, loaded once for all who hold it at the same time."""
    with _GUARD:
        engine = _LOADED.get(name)
        if engine is None:
            engine = _LOADED[name] = resolve_engine(name, None)
        return engine


class StopFlag(CancellableWatcher):
    """Ends its row once `set`."""

    def __init__(self) -> None:
        super().__init__(lambda: self.set)
        self.set = False


def run(
    session: Session,
    rows: Sequence[PreparedRequest],
    options: GenerationOptions,
    stops: Sequence[str] = (),
    read: Callable[[int, str, str], None] | None = None,
    cuts: Sequence[StopFlag] | None = None,
    hide: str = "",
) -> list[GenerationResult]:
    """Answer prepared rows as one batch; the caller holds the engine's lock.

    stops: strings that end an answer, which is then up to the caller to shorten. read(row, part, text) is told the
    text as it is made. cuts: of each row, so that a caller can end it.
    """
    if not stops and read is None:
        completions = session.engine.generate([row.request for row in rows], options.sampling)
        session.end_batch(rows, options)
        return [session.finish(row, done) for row, done in zip(rows, completions, strict=True)]
    reader = _Reader(session, rows, stops, read or (lambda row, part, text: None), cuts, hide)
    completions = session.engine.generate(reader.requests, options.sampling, reader.stop_rows)
    session.end_batch(rows, options)
    made = [session.finish(row, done) for row, done in zip(rows, completions, strict=True)]
    reader.finish(made)
    return made


class _Reader:
    """Reads rows out while they are made, and ends those in whose answer a stop string stands."""

    def __init__(
        self,
        session: Session,
        rows: Sequence[PreparedRequest],
        stops: Sequence[str],
        read: Callable[[int, str, str], None],
        cuts: Sequence[StopFlag] | None,
        hide: str,
    ) -> None:
        self.session, self.rows, self.stops, self.read, self.hide = session, rows, stops, read, hide
        self.cuts = cuts or [StopFlag() for _ in rows]
        self.requests = [cut.wrap(row.request) for cut, row in zip(self.cuts, rows, strict=True)]
        parsers = [ReasoningParser(session.markers, row.state, stops, hide) for row in rows]
        self.narrator = StreamEmitter(session.codec, session.markers, rows, self._take, parsers)

    def _take(self, event: TextDeltaEvent) -> None:
        if event.text:
            self.read(event.row, event.channel, event.text)

    def stop_rows(self, row: int, tokens: Sequence[int], forced: bool) -> None:
        """Feed the emitter, and end a row in whose answer a stop string stands."""
        self.narrator(row, tokens, forced)
        if self.narrator.parsers[row].stopped:
            self.cuts[row].set = True

    def finish(self, made: Sequence[GenerationResult]) -> None:
        """Read out what was held back."""
        ends = (*self.stops, self.hide) if self.hide else self.stops
        for number, result in enumerate(made):
            self.narrator.finish_row(number, result.thinking, truncate_at_stop(result.answer, ends)[0])


Told = tuple[str, str] | GenerationResult | BaseException


class BackgroundGeneration:
    """A prompt that is answered in a thread of its own, told by `tell`; `end` makes the row end with its next token.

    Told are (part, text), then the generation, or the error that there was instead; nothing after `end`.
    """

    def __init__(
        self,
        session: Session,
        prompt: Prompt,
        options: GenerationOptions,
        stops: Sequence[str],
        hide: str,
        tell: Callable[[Told], None],
    ) -> None:
        self._cut, self._left = StopFlag(), False
        self._arguments: tuple[Any, ...] = (session, prompt, options, stops, hide)
        self._tell = tell
        self._thread = threading.Thread(target=self._run, name="tersely-answering")
        self._thread.start()

    def end(self) -> None:
        """Let the row end; returns at once."""
        self._left = self._cut.set = True

    def join(self) -> None:
        """Wait until the row has ended."""
        self._thread.join()

    def _run(self) -> None:
        session, prompt, options, stops, hide = self._arguments
        said: Told
        try:
            with engine_lock(session.engine):
                if self._left:  # whoever asked has gone while others were answered
                    return
                rows = session.prepare([prompt], options)

                def read(row: int, part: str, text: str) -> None:
                    self._say((part, text))

                said = run(session, rows, options, stops, read, [self._cut], hide)[0]
        except BaseException as error:  # whatever it is, it belongs to who asked
            said = error
        self._say(said)

    def _say(self, said: Told) -> None:
        if not self._left:
            self._tell(said)


Start = Callable[[Callable[[Told], None]], BackgroundGeneration]


def iter_deltas(start: Start) -> Generator[tuple[str, str] | GenerationResult, None, None]:
    """What an answering tells, as an iterator; leaving it early ends the row and waits for that."""
    queue: SimpleQueue[Told] = SimpleQueue()
    answering = start(queue.put)
    try:
        while True:
            said = queue.get()
            if isinstance(said, BaseException):
                raise said
            yield said
            if isinstance(said, GenerationResult):
                return
    finally:
        answering.end()
        answering.join()


async def aiter_deltas(start: Start) -> AsyncGenerator[tuple[str, str] | GenerationResult, None]:
    """What an answering tells, while other tasks run; leaving it early ends the row, and waits for nothing."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Told] = asyncio.Queue()

    def tell(said: Told) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed in this very moment
            loop.call_soon_threadsafe(queue.put_nowait, said)

    answering = start(tell)
    try:
        while True:
            said = await queue.get()
            if isinstance(said, BaseException):
                raise said
            yield said
            if isinstance(said, GenerationResult):
                return
    finally:
        answering.end()
