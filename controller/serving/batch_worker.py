"""Answers requests on an engine of this process: one thread owns it and decodes what waits in batches.

A batch takes the request that has waited longest and those behind it that can be decoded with it. Rows cannot join a
batch under way, so a request waits for the longest row before it; limits on tokens bound that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Hashable
from functools import partial

from jinja2 import TemplateError

from ...errors import CapabilityError, PromptError, TerselyError
from ..probe_registry import ProbeError
from ..session import Session
from ..streaming import StreamEmitter
from .drift_monitor import DriftReporter
from .errors import RequestError
from .metrics import Metrics
from .pending_response import PendingResponse
from .resolved_request import ModelInfo, ResolvedRequest
from .served_request import ServedRequest
from .settings import ServerLimits

_log = logging.getLogger(__name__)


class BatchWorker:
    """Answers on a session; implements `tickets.Backend`.

    thinks: whether the session's model does. The session belongs to the thread of the worker from `start` on.
    """

    def __init__(self, session: Session, limits: ServerLimits, metrics: Metrics, thinks: bool = True) -> None:
        self.session, self.limits, self.metrics = session, limits, metrics
        template = str(getattr(session.engine.tokenizer, "chat_template", None) or "")
        self.abilities = ModelInfo(thinks, "tools" in template, session.engine.context_length)
        self._drifts = DriftReporter(session)
        self._waiting: deque[PendingResponse] = deque()
        self._running: list[PendingResponse] = []
        self._news = threading.Condition()
        self._open, self._ending = True, False
        self._thread = threading.Thread(target=self._work, name="tersely-worker", daemon=True)

    @property
    def open(self) -> bool:
        """See `Backend.open`."""
        return self._open

    @property
    def idle(self) -> bool:
        """See `Backend.idle`."""
        with self._news:
            return not self._waiting and not self._running

    def start(self) -> None:
        """See `Backend.start`."""
        self._thread.start()

    def submit(self, wish: ResolvedRequest, streams: bool) -> PendingResponse:
        """See `Backend.submit`."""
        with self._news:
            if not self._open:
                raise RequestError("the server is shutting down", 503, code="shutting_down", retry_after=5)
            if len(self._waiting) >= self.limits.waiting:
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.gone)
            if (waiting := len(self._waiting)) >= self.limits.waiting:
                raise RequestError(
                    f"{waiting} requests are waiting already; try again", 503, code="busy", retry_after=1
                )
            ticket = PendingResponse(wish, streams, self.limits.timeout)
            self._waiting.append(ticket)
            self._news.notify()
        return ticket

    def drain(self) -> None:
        """See `Backend.drain`."""
        with self._news:
            self._open = False
            self._news.notify()

    def give_up(self) -> None:
        """See `Backend.give_up`."""
        with self._news:
            self._open = False
            for ticket in (*self._waiting, *self._running):
                ticket.fail(RequestError("the server was shut down", 503, code="shutting_down", retry_after=5))
                ticket.cancel()

    def close(self) -> None:
        """See `Backend.close`."""
        self.give_up()
        with self._news:
            self._ending = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.session.engine.close()

    def _work(self) -> None:
        """Decode batches until the end."""
        while batch := self._next():
            try:
                self._answer(batch)
            except Exception:  # whatever went wrong with one batch, the next may be fine
                _log.exception("a batch of %d requests failed", len(batch))
                for ticket in batch:
                    ticket.fail(RequestError("the engine failed; the server's log says how", 500, code="engine_failed"))
            with self._news:
                self._running = []

    def _next(self) -> list[PendingResponse]:
        """Wait for work; [] at the end."""
        with self._news:
            while True:
                self._news.wait_for(lambda: self._waiting or self._ending)
                if self._ending:
                    return []
                self._gather()
                self._running = self._pick()
                if self._running:
                    return self._running

    def _gather(self) -> None:
        """Wait a moment for company."""
        until = time.monotonic() + self.limits.gather
        while sum(t.wish.n for t in self._waiting) < self.limits.batch and not self._ending:
            if (left := until - time.monotonic()) <= 0:
                return
            self._news.wait(left)

    def _pick(self) -> list[PendingResponse]:
        """Take the request that has waited longest, and as many as fit that can be decoded with it."""
        picked: list[PendingResponse] = []
        left: deque[PendingResponse] = deque()
        rows = 0
        for ticket in self._waiting:
            if ticket.gone:
                continue
            alike = not picked or _kind(ticket.wish) == _kind(picked[0].wish)
            if alike and rows + ticket.wish.n <= self.limits.batch:
                picked.append(ticket)
                rows += ticket.wish.n
            else:
                left.append(ticket)
        self._waiting = left
        return picked

    def _answer(self, batch: list[PendingResponse]) -> None:
        """Decode the rows of these requests as one batch."""
        rows = [row for ticket in batch for row in self._rows(ticket)]
        if not rows:
            return

        session = self.session
        sink = None
        if any(row.wants_text for row in rows):
            sink = StreamEmitter(
                session.codec,
                session.markers,
                [row.row for row in rows],
                lambda event: rows[event.row].send(event),
                lambda number: rows[number].make_parser(),
            )
            for number, row in enumerate(rows):
                row.finish_stream = partial(sink.finish_row, number)
        requests = [row.request() for row in rows]
        sampling = batch[0].wish.options.sampling
        try:
            completions = session.engine.generate(requests, sampling, sink)
        finally:
            self._drifts.settle([ticket.wish.options for ticket in batch])
        for row, done in zip(rows, completions, strict=True):
            row.tell(done)

    def _rows(self, ticket: PendingResponse) -> list[ServedRequest]:
        """Make the rows of a request; [] if it cannot be answered, which it is then told."""
        wish = ticket.wish
        try:
            made = self.session.prepare([wish.messages] * wish.n, wish.options)
            self._check(len(made[0].request.prompt_ids), wish.prompt)
        except Exception as error:  # of this request alone: the others of the batch go on
            ticket.fail(_refusal_of(error, wish.prompt))
            return []
        for row in made:
            row.notes.extend(self._drifts.notes(wish.options))
        return [ServedRequest(ticket, i, self.session, row, self.metrics) for i, row in enumerate(made)]

    def _check(self, size: int, field: str) -> None:
        most = self.limits.prompt
        if most is not None and size > most:
            message = f"the prompt has {size} tokens; accepted: at most {most}"
            raise RequestError(message, param=field, code="context_length_exceeded")


def _refusal_of(error: Exception, field: str) -> RequestError:
    """Why a request cannot be answered; field: the one that the prompt came by."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PromptError):
        return RequestError(str(error), param=field)
    if isinstance(error, TerselyError):
        return RequestError(str(error), param="tersely" if isinstance(error, (CapabilityError, ProbeError)) else None)
    if isinstance(error, TemplateError):
        return RequestError(f"the model's chat template refuses these messages: {error}", param=field)
    _log.error("a request could not be made ready", exc_info=error)
    return RequestError("the request could not be made ready; the server's log says why", 500, code="engine_failed")


def _kind(wish: ResolvedRequest) -> Hashable:
    """What requests have in common that can be decoded together.

    A seed is worth something only if nobody else draws: such a request goes alone.
    """
    sampling = wish.options.sampling
    drawn = sampling.seed is not None and sampling.temperature != 0
    return sampling, wish.options.effort == "auto", id(wish) if drawn else None
