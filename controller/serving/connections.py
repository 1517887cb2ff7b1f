"""The HTTP protocol of both servers: uvicorn's, which would let silent clients keep every connection for good."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 20.0
"""For the headers of a request to arrive, from the connection or from their first byte on."""
GRACE = 5
"""Seconds for clients to read the rest of their responses once the server ends."""
MOST = 1024
"""Connections at once; fewer where the process may open fewer files."""
_OTHER_FILES = 64


def max_connections() -> int:
    """How many clients may be connected at once."""
    try:
        import resource
    except ImportError:  # not on this system
        return MOST
    return max(1, min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))


class GuardedProtocol(AutoHTTPProtocol):
    """Ends connections whose headers do not arrive; where there are too many, the one that is idle for longest."""

    _timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if self.config.timeout_graceful_shutdown is None:  # as vLLM has it: then a client that stays stops the end
            self.config.timeout_graceful_shutdown = GRACE
        self._wait_for_headers()
        if len(self.connections) > max_connections():
            others = [one for one in self.connections if one is not self and one.idle]
            min(others, key=lambda one: one._idle_since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if not self.idle or self not in self.connections:  # the latter after an upgrade to a web socket
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        """See uvicorn's protocols."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
