"""A relay of TCP connections that fails when a test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Passes connections on to a server; while it fails, open ones are reset, and new ones at once."""

    def __init__(self, server: str) -> None:
        self._to, self._port = urlsplit(server), 0
        self._open: set[asyncio.StreamWriter] = set()
        self._failing = False
        self._loop = asyncio.new_event_loop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def fail(self, failing: bool = True) -> None:
        """Begin or cease to fail; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._set, failing)

    def _set(self, failing: bool) -> None:
        self._failing = failing
        for writer in self._open if failing else ():
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._failing:
            writer.transport.abort()
            return
        try:
            theirs, ours = await asyncio.open_connection(self._to.hostname, self._to.port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, ours}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, ours))
                group.create_task(_copy(theirs, writer))
        finally:
            self._open -= {writer, ours}

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._relay, "127.0.0.1", 0)

    @contextmanager
    def serve(self) -> Iterator[Relay]:
        """Serve on a free port."""
        listening = self._loop.run_until_complete(self._listen())
        self._port = listening.sockets[0].getsockname()[1]
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(listening), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    async def _stop(self, listening: asyncio.Server) -> None:
        listening.close()
        self._set(True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends, and end the other."""
    with suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
