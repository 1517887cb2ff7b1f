"""What servers send: bodies and server-sent events, each within limits of size and time."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ....errors import ModelError
from . import StreamError

if TYPE_CHECKING:
    import aiohttp

MAX_EVENT = 1 << 20  # bytes of one line, and of the data of one event; those of servers have some hundreds
_LINE_END = re.compile(rb"\r\n|\n|\r")
_REST = 0.05  # seconds that the end of a stream may take


async def read_body(reply: aiohttp.ClientResponse, limit: int, seconds: float, cut: bool = False) -> bytes:
    """A body of at most `limit` bytes; a longer or slower one is cut, or a ValueError or TimeoutError."""
    body = bytearray()
    with suppress(TimeoutError) if cut else nullcontext():
        async with asyncio.timeout(seconds):
            async for chunk in _read_raw(reply, seconds):
                body += chunk
                if len(body) > limit:
                    if cut:
                        break
                    raise ValueError(f"more than {limit} bytes")
    return bytes(body[:limit])


async def _read_raw(reply: aiohttp.ClientResponse, seconds: float) -> AsyncGenerator[bytes, None]:
    """The bytes as they were sent: nothing is unpacked, which could be far more than arrives.

    Raises TimeoutError after so many seconds without any.
    """
    if reply.headers.get("content-encoding", "identity").lower() != "identity":
        raise StreamError("the reply is compressed, which was not asked for")
    while True:
        async with asyncio.timeout(seconds):
            chunk = await reply.content.readany()
        if not chunk:
            return
        yield chunk


async def read_events(reply: aiohttp.ClientResponse, seconds: float) -> AsyncGenerator[str, None]:
    """The data of events; raises TimeoutError for a server that writes nothing but comments for so long."""
    decoder, latest = EventDecoder(), time.monotonic()
    async for chunk in _read_raw(reply, seconds):
        events = decoder.feed(chunk)
        if events:
            latest = time.monotonic()
        elif time.monotonic() - latest > seconds:
            raise TimeoutError
        for data in events:
            yield data
    for data in decoder.finish():
        yield data


async def read_rest(events: AsyncIterator[object]) -> None:
    """Read what follows the last event that matters, if it comes at once: then the connection can be used again."""
    with suppress(TimeoutError, StreamError, ModelError):
        async with asyncio.timeout(_REST):
            async for _ in events:
                pass


class EventDecoder:
    """Splits bytes, however they arrive, into server-sent events (HTML standard, section 9.2), within limits."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that is not over
        self._data: list[bytes] = []
        self._line_size = self._event_size = 0  # of the pieces, and of the lines of the data
        self._after_return = False

    def feed(self, chunk: bytes) -> list[str]:
        """Add bytes and return the data of events that are complete; raises StreamError for one that is too long."""
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if chunk:
            self._after_return = chunk.endswith(b"\r")
        *lines, rest = _LINE_END.split(chunk)
        events = []
        for line in lines:
            events.append(self._take(b"".join([*self._pieces, line])))
            self._pieces.clear()
            self._line_size = 0
        self._pieces.append(rest)
        self._line_size += len(rest)
        if self._line_size + self._event_size > MAX_EVENT:
            raise StreamError(f"an event has more than {MAX_EVENT} bytes")
        return [event for event in events if event is not None]

    def finish(self) -> list[str]:
        """What is left when the stream ends, which some servers do without a blank line."""
        return [event for event in (self._take(b"".join(self._pieces)), self._take(b"")) if event is not None]

    def _take(self, line: bytes) -> str | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._event_size += len(line) + 1
            return None
        data, self._data, self._event_size = self._data, [], 0
        return b"\n".join(data).decode("utf-8", "replace") if data else None


def parse_event(data: str) -> dict[str, Any]:
    """The JSON object of an event; raises StreamError for anything else."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StreamError(f"an event is not valid JSON: {error}") from error
    if not isinstance(event, dict):
        raise StreamError("an event is not a JSON object")
    return event
