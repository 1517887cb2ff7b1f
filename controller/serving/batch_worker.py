"""The thread that owns the engine and decodes waiting requests in batches.

A batch takes the request that has waited longest, and those behind it that can be decoded with it. Rows cannot join a
running batch, so a request waits for the longest row before it; limits on tokens bound that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence

from ..session import Session, make_sink
from .errors import RequestError
from .metrics import Metrics
from .replies import PendingResponse
from .settings import ResolvedRequest, ServerLimits
from .worker import ServedRow, SessionWorker, engine_failed, shutting_down

_log = logging.getLogger(__name__)


class BatchWorker(SessionWorker):
    """Answers requests on a session, which belongs to this worker's thread from `start` on."""

    def __init__(self, session: Session, limits: ServerLimits, metrics: Metrics, thinks: bool = True) -> None:
        super().__init__(session, limits, metrics, thinks)
        self._closing = False
        self._waiting: deque[PendingResponse] = deque()
        self._running: list[PendingResponse] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tersely-worker", daemon=True)

    @property
    def unfinished(self) -> Sequence[PendingResponse]:
        with self._changed:
            return [*self._waiting, *self._running]

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: ResolvedRequest, streams: bool) -> PendingResponse:
        with self._changed:
            if not self.accepting:
                raise shutting_down()
            if len(self._waiting) >= self.limits.waiting:
                self._waiting = deque(pending for pending in self._waiting if not pending.cancelled)
            if (waiting := len(self._waiting)) >= self.limits.waiting:
                raise RequestError(
                    f"{waiting} requests are already waiting; try again", 503, code="busy", retry_after=1
                )
            pending = PendingResponse(request, streams, self.limits.timeout)
            self._waiting.append(pending)
            self._changed.notify()
        return pending

    def close(self) -> None:
        self.abort()
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.session.engine.close()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except Exception:  # the next batch may be fine
                _log.exception("a batch of %d requests failed", len(batch))
                for pending in batch:
                    pending.send(engine_failed())
            with self._changed:
                self._running = []

    def _next_batch(self) -> list[PendingResponse]:
        """Wait for requests; [] once the worker closes."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return []
                self._wait_for_more()
                self._running = self._pick()
                if self._running:
                    return self._running

    def _wait_for_more(self) -> None:
        deadline = time.monotonic() + self.limits.batch_wait
        while sum(pending.request.n for pending in self._waiting) < self.limits.batch and not self._closing:
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._changed.wait(left)

    def _pick(self) -> list[PendingResponse]:
        """Take the request that has waited longest, and those that fit and can be decoded with it."""
        picked: list[PendingResponse] = []
        left: deque[PendingResponse] = deque()
        rows = 0
        for pending in self._waiting:
            if pending.cancelled:
                continue
            alike = not picked or _batch_key(pending.request) == _batch_key(picked[0].request)
            if alike and rows + pending.request.n <= self.limits.batch:
                picked.append(pending)
                rows += pending.request.n
            else:
                left.append(pending)
        self._waiting = left
        return picked

    def _run(self, batch: Sequence[PendingResponse]) -> None:
        """Decode the rows of these requests as one batch."""
        rows: list[ServedRow] = []
        for pending in batch:
            try:
                rows += self.prepare(pending)
            except RequestError as error:  # only this request fails; the rest of the batch goes on
                pending.send(error)
        if not rows:
            return
        sampling = batch[0].request.options.sampling
        try:
            completions = self.session.engine.generate([row.request for row in rows], sampling, make_sink(rows))
        finally:
            self.note_drift(rows)
        for row, completion in zip(rows, completions, strict=True):
            row.on_finish(completion)


def _batch_key(request: ResolvedRequest) -> Hashable:
    """What requests of one batch have in common.

    A sampled request with a seed is a batch of its own, so that the seed alone determines its output.
    """
    sampling = request.options.sampling
    alone = sampling.seed is not None and sampling.temperature != 0
    return sampling, id(request) if alone else None
