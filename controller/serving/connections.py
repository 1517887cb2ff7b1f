"""The HTTP protocol of both servers: uvicorn's, which would let silent clients keep every connection for good."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 20.0  # for the headers of a request to arrive, from the connection or from their first byte on
READ_SECONDS = 60.0  # for a client to take some of what is sent to it, once its buffers are full
MAX_CHUNKS = 10_000
"""Chunks of one request's body, each of which costs the event loop as much time as a kilobyte in one piece."""
GRACE = 5  # seconds for clients to read the rest of their responses once the server ends
MOST = 1024  # connections at once; fewer where the process may open fewer files
_OTHER_FILES = 64
_CHUNK = re.compile(rb"\r\n[0-9A-Fa-f]{1,20}[ \t]*(?:;[^\r\n]*)?\r\n")
"""What begins a chunk; text of JSON has no line like it, but for a number alone in a list."""


def max_connections() -> int:
    """How many clients may be connected at once."""
    try:
        import resource
    except ImportError:  # not on this system
        return MOST
    return max(1, min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))


class GuardedProtocol(AutoHTTPProtocol):
    """Ends connections whose headers do not arrive, whose bodies come in crumbs, or whose client reads nothing.

    Where there are too many, it ends the one that is idle for longest.
    """

    _timer: asyncio.TimerHandle | None = None  # until the headers are there
    _reader: asyncio.TimerHandle | None = None  # until the client has read
    _idle_since = 0.0
    _chunks = 0

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.config.timeout_graceful_shutdown is None:  # as vLLM has it: then a client that stays stops the end
            self.config.timeout_graceful_shutdown = GRACE
        self._wait_for_headers()
        if len(self.connections) > max_connections():
            others = [one for one in self.connections if one is not self and one.idle]
            min(others, key=lambda one: one._idle_since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        cycle, self._chunks = self.cycle, self._chunks + len(_CHUNK.findall(data))
        if self._chunks > MAX_CHUNKS:
            self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is not cycle:
            self._chunks = 0
        if not self.idle or self not in self.connections:  # the latter after an upgrade to a web socket
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reader()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
