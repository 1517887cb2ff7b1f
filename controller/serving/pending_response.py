"""What a request that is being answered looks like from the event loop, and how the thread that answers it speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from ..text.reasoning_parser import Channel
from ..trace import GenerationResult
from .errors import RequestError
from .resolved_request import ModelInfo, ResolvedRequest


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one row."""

    row: int
    part: Channel
    text: str


@dataclass(frozen=True, slots=True)
class RowFinished:
    """A row is done; budget: thinking tokens it was allowed."""

    row: int
    generation: GenerationResult
    budget: int


Event = TextDelta | RowFinished


class PendingResponse:
    """Stands for one request from when it is taken in until it is answered or given up.

    Made in the event loop; `tell` and `fail` may be called from any thread, everything else from the loop alone.
    streams: pieces are wanted, not the ends alone.
    """

    def __init__(self, wish: ResolvedRequest, streams: bool, timeout: float) -> None:
        self.wish, self.streams = wish, streams
        self.gone = False  # read by the thread that answers
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout
        self._timeout = timeout
        self._events: asyncio.Queue[Event | RequestError] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Say what happened."""
        self._put(event)

    def fail(self, refusal: RequestError) -> None:
        """Say that there will be no answer."""
        self._put(refusal)

    def _put(self, event: Event | RequestError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            self.gone = True  # the loop is closed: nobody listens

    def cancel(self) -> None:
        """Want no more of it: rows end at their next token, and a request that waits leaves the queue."""
        self.gone = True

    async def next(self) -> Event:
        """The next event; raises RequestError if there will be none, or it takes too long."""
        try:
            async with asyncio.timeout_at(self._deadline):
                event = await self._events.get()
        except TimeoutError:
            self.cancel()
            raise RequestError(f"not answered within {self._timeout:g} s", 504, code="timeout") from None
        if isinstance(event, RequestError):
            raise event
        return event

    async def events(self, first: Event) -> AsyncIterator[Event]:
        """All events from the first on, until each row has ended."""
        event, left = first, self.wish.n
        while True:
            yield event
            left -= isinstance(event, RowFinished)
            if not left:
                return
            event = await self.next()


class Backend(Protocol):
    """What answers; a server of any engine implements this."""

    @property
    def abilities(self) -> ModelInfo:
        """What the model can do."""
        ...

    @property
    def open(self) -> bool:
        """Whether requests are taken in."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        ...

    def start(self) -> None:
        """Get ready, once, before the first request."""
        ...

    def submit(self, wish: ResolvedRequest, streams: bool) -> PendingResponse:
        """Take a request in; raises RequestError where there is no room, or the server is about to end."""
        ...

    def drain(self) -> None:
        """Take no more requests in."""
        ...

    def give_up(self) -> None:
        """Tell all who wait that there will be no answer, and let go of what runs; does not block."""
        ...

    def close(self) -> None:
        """Give up what is left and free what was taken; blocks."""
        ...
