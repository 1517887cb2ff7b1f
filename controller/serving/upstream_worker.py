"""Answers requests on a server behind this one, each as soon as it comes: that server does the batching."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ...errors import ModelError
from ..batch import decode_async
from ..engines.openai.backend import ServerLostError
from ..engines.openai.client import RefusedError
from ..engines.openai.engine import RemoteEngine
from ..session import Session
from .errors import RequestError
from .metrics import Metrics
from .replies import PendingResponse
from .settings import ResolvedRequest, ServerLimits
from .worker import ServedRow, SessionWorker, engine_failed, shutting_down

_log = logging.getLogger(__name__)


class UpstreamWorker(SessionWorker):
    """A worker in the event loop of the application; at most `limits.batch` requests are upstream at a time.

    The session's engine is a `RemoteEngine`.
    """

    def __init__(self, session: Session, limits: ServerLimits, metrics: Metrics, thinks: bool = True) -> None:
        super().__init__(session, limits, metrics, thinks)
        assert isinstance(session.engine, RemoteEngine)
        self.engine = session.engine
        self._tasks: dict[asyncio.Task[None], PendingResponse] = {}
        self._slots = asyncio.Semaphore(limits.batch)
        self._preparing = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._tasks

    def start(self) -> None:
        """Begin to answer; nothing needs to be started."""

    def submit(self, request: ResolvedRequest, streams: bool) -> PendingResponse:
        """See `RequestWorker.submit`."""
        if not self.accepting:
            raise shutting_down()
        if (open_requests := len(self._tasks)) >= self.limits.batch + self.limits.waiting:
            raise RequestError(f"{open_requests} requests are open; try again", 503, code="busy", retry_after=1)
        pending = PendingResponse(request, streams, self.limits.timeout)
        task = asyncio.create_task(self._answer(pending))
        self._tasks[task] = pending
        task.add_done_callback(self._tasks.pop)
        pending.on_cancel = task.cancel
        return pending

    def drain(self) -> None:
        """Accept no more requests."""
        self.accepting = False

    def abort(self) -> None:
        """Fail all requests; does not block."""
        self.accepting = False
        for pending in list(self._tasks.values()):
            pending.send(shutting_down())
            pending.cancel()

    def close(self) -> None:
        """Fail what is left and close the connections; blocks."""
        self.abort()
        self.engine.close()

    async def _answer(self, pending: PendingResponse) -> None:
        """Answer one request, or say why that is impossible; cancelling this closes its streams upstream."""
        async with self._slots:
            try:
                async with self._preparing:  # the templates of many long prompts would take all threads
                    rows = await asyncio.to_thread(self.prepare, pending)
                if rows:
                    await self._decode(pending, rows)
            except ModelError as error:
                _log.error("the upstream server failed: %s", error)
                pending.send(_upstream_failed(error))
            except Exception:
                _log.exception("a request failed")
                pending.send(engine_failed())

    async def _decode(self, pending: PendingResponse, rows: Sequence[ServedRow]) -> None:
        completions = await decode_async(self.engine, rows, pending.request.options.sampling)
        self.note_drift(rows)
        for row, completion in zip(rows, completions, strict=True):
            row.on_finish(completion)


def _upstream_failed(error: ModelError) -> RequestError:
    """The error for clients, who need not know where the upstream server is."""
    if isinstance(error, ServerLostError):
        return RequestError("the upstream server was lost; try again", 502, code=error.code, retry_after=1)
    what = "refused the request" if isinstance(error, RefusedError) else "failed"
    return RequestError(f"the upstream server {what}; see the server log", 502, code=error.code)
