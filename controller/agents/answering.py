"""Answering prompts for LangChain: one caller of an engine at a time, rows that end when nobody reads them any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..engines.base import KEEP, Directive, Engine, Opened, Opening, Resting, Seen, State, Watcher
from ..faces import engine_of
from ..making import Prepared
from ..options import Options
from ..prompts import Prompt
from ..session import Session
from ..stream import Event, Narrator
from ..trace import Generation
from .cutting import Pieces

_STOP = Directive(stop=True)
_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
_LOADED: WeakValueDictionary[str, Engine] = WeakValueDictionary()


def lock_of(engine: Engine) -> threading.Lock:
    """The lock of an engine, which runs one batch at a time."""
    with _GUARD:
        return _LOCKS.setdefault(engine, threading.Lock())


def shared_engine(name: str) -> Engine:
    """The engine of a name or folder, loaded once for all who hold it at the same time."""
    with _GUARD:
        engine = _LOADED.get(name)
        if engine is None:
            engine = _LOADED[name] = engine_of(name, None)
        return engine


class Cut:
    """Watches a row for the watcher it has, and ends it once `over`; implements `engines.base.Watcher`."""

    def __init__(self, inner: Watcher | None) -> None:
        self.inner, self.over = inner, False
        self._trial = 0  # tokens of the trial under way

    def observe(self, token: int, seen: Seen | None = None) -> Directive:
        """See `Watcher.observe`."""
        if self.over:
            return Directive(drop=self._trial + 1, trial=False, stop=True) if self._trial else _STOP
        if self.inner is None:
            return KEEP
        directive = self.inner.observe(token, seen)
        if directive.trial:
            self._trial = len(directive.force)
        elif self._trial:
            self._trial = 0 if directive.trial is False else self._trial + 1
        return directive

    def resume(self) -> Directive:
        """See `Resting.resume`."""
        return _STOP if self.over else cast(Resting, self.inner).resume()


class _CutOpening:
    """An opening whose watcher may be cut; implements `engines.base.Opening`."""

    def __init__(self, inner: Opening, cut: Cut) -> None:
        self.inner, self.cut = inner, cut
        self.layer, self.longest = inner.layer, inner.longest

    def choose(self, state: State) -> Opened:
        """See `Opening.choose`."""
        opened = self.inner.choose(state)
        self.cut.inner = opened.watcher
        return replace(opened, watcher=self.cut)


def run(
    session: Session,
    rows: Sequence[Prepared],
    options: Options,
    stops: Sequence[str] = (),
    read: Callable[[int, str, str], None] | None = None,
    cuts: Sequence[Cut] | None = None,
    hide: str = "",
) -> list[Generation]:
    """Answer prepared rows as one batch; the caller holds the engine's lock.

    stops: strings that end an answer, which is then up to the caller to shorten. read(row, part, text) is told the
    text as it is made. cuts: of each row, so that a caller can end it.
    """
    sink = None
    if stops or read is not None:
        cuts = cuts or [Cut(None) for _ in rows]
        for row, cut in zip(rows, cuts, strict=True):
            _cut(row, cut)
        sink, finish = _reader(session, rows, stops, read, cuts, hide)
    completions = session.engine.generate([row.request for row in rows], options.sampling, sink)
    if sink is not None:
        finish()
    session.note_drift(rows, options)
    return [session.finish(row, done) for row, done in zip(rows, completions, strict=True)]


def _cut(row: Prepared, cut: Cut) -> None:
    request = row.request
    if request.opening is not None:
        row.request = replace(request, opening=_CutOpening(request.opening, cut))
    else:
        cut.inner = request.watcher
        row.request = replace(request, watcher=cut)


def _reader(
    session: Session,
    rows: Sequence[Prepared],
    stops: Sequence[str],
    read: Callable[[int, str, str], None] | None,
    cuts: Sequence[Cut],
    hide: str,
) -> tuple[Narrator, Callable[[], None]]:
    """A token sink that reads out and cuts, and what to call once all tokens have come."""
    pieces: dict[int, Pieces] = {}

    def tell(row: int, parts: Iterator[tuple[str, str]]) -> None:
        for part, text in parts:
            if read is not None:
                read(row, part, text)

    def emit(event: Event) -> None:
        row = event.row
        if row not in pieces:  # a row's state is settled when its first token comes
            pieces[row] = Pieces(session.markers, rows[row].state, stops, hide)
        tell(row, pieces[row].take(event))
        if pieces[row].stopped:
            cuts[row].over = True

    narrator = Narrator(session.codec, session.markers, rows, emit)

    def finish() -> None:
        narrator.finish()
        for row, of_row in pieces.items():
            tell(row, of_row.finish())

    return narrator, finish


Told = tuple[str, str] | Generation | BaseException


class Answering:
    """A prompt that is answered in a thread of its own, told by `tell`; `end` makes the row end with its next token.

    Told are (part, text), then the generation, or the error that there was instead; nothing after `end`.
    """

    def __init__(
        self,
        session: Session,
        prompt: Prompt,
        options: Options,
        stops: Sequence[str],
        hide: str,
        tell: Callable[[Told], None],
    ) -> None:
        self._cut, self._left = Cut(None), False
        self._arguments: tuple[Any, ...] = (session, prompt, options, stops, hide)
        self._tell = tell
        self._thread = threading.Thread(target=self._run, name="tersely-answering")
        self._thread.start()

    def end(self) -> None:
        """Let the row end; returns at once."""
        self._left = self._cut.over = True

    def join(self) -> None:
        """Wait until the row has ended."""
        self._thread.join()

    def _run(self) -> None:
        session, prompt, options, stops, hide = self._arguments
        said: Told
        try:
            with lock_of(session.engine):
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


Start = Callable[[Callable[[Told], None]], Answering]


def read_out(start: Start) -> Generator[tuple[str, str] | Generation, None, None]:
    """What an answering tells, as an iterator; leaving it early ends the row and waits for that."""
    queue: SimpleQueue[Told] = SimpleQueue()
    answering = start(queue.put)
    try:
        while True:
            said = queue.get()
            if isinstance(said, BaseException):
                raise said
            yield said
            if isinstance(said, Generation):
                return
    finally:
        answering.end()
        answering.join()


async def read_out_async(start: Start) -> AsyncGenerator[tuple[str, str] | Generation, None]:
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
            if isinstance(said, Generation):
                return
    finally:
        answering.end()
