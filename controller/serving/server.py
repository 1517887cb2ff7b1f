"""Running an application: the socket it listens on, and an end that lets what runs finish."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from .pending_response import Backend
from .sockets import bind_error

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than clients do, or one might be closed as it is used again."""
_LAST_WORDS = 5
"""Seconds for clients to read what is left of their responses."""


class UvicornServer(uvicorn.Server):
    """Serves until it is told to stop: then no request is taken in, and those that run have `drain` seconds.

    A second signal ends it at once. ready: printed to standard error when requests are taken in.
    """

    should_exit: bool

    def __init__(self, app: Any, backend: Backend, drain: float, ready: str = "") -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_LAST_WORDS,
            lifespan="on",
        )
        super().__init__(config)
        self.backend, self.drain, self.ready = backend, drain, ready
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started and self.ready:
            print(self.ready, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Take no more requests in and end when those that run are done; may be called from any thread."""
        self.backend.drain()
        self._deadline = time.monotonic() + self.drain

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn; whether to end now."""
        if self._deadline is not None and not self.should_exit:
            late = time.monotonic() >= self._deadline
            self.should_exit = late or self.backend.idle
            if late:
                self.backend.give_up()
        return bool(await super().on_tick(counter))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal: the first stops, the second ends."""
        if self._deadline is None:
            self.stop()
        else:
            self.drain, self._deadline = 0.0, time.monotonic()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear signals while the server runs; they are not raised anew afterwards, for stopping is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def serve(server: UvicornServer, bound: socket.socket) -> None:
    """Serve on a bound socket until told to stop; raises OptionError if somebody else came to listen there first."""
    host, port = bound.getsockname()[:2]
    try:
        server.run(sockets=[bound])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise bind_error(host, port, error) from None
    finally:
        bound.close()
