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
from dataclasses import replace

from jinja2 import TemplateError

from ...errors import CapabilityError, PromptError, TerselyError
from ..batch import BatchRow, decode
from ..probe_registry import ProbeError
from ..request_builder import PreparedRequest, distinct_policies
from ..session import Session
from ..text.tool_calls import OPEN
from ..trace import Decision
from ..types import Completion, Directive, StepInfo
from .errors import RequestError
from .metrics import Metrics
from .replies import PendingResponse, RowFinished, split_tool_calls
from .settings import ModelInfo, ResolvedRequest, ServerLimits

_log = logging.getLogger(__name__)


class ServedRow(BatchRow):
    """One row of a request while an engine decodes it; implements `types.CompletionListener`."""

    def __init__(
        self, pending: PendingResponse, number: int, session: Session, prepared: PreparedRequest, metrics: Metrics
    ) -> None:
        request = pending.request
        super().__init__(
            session,
            prepared,
            lambda: pending.cancelled or self._finished,
            request.stops,
            OPEN if request.options.tools else "",
            (lambda event: pending.send(replace(event, row=number))) if pending.streams else None,
        )
        self.pending, self.number, self.metrics = pending, number, metrics
        self._finished = False

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `types.Watcher`; an error ends this row alone."""
        try:
            return super().observe(token, step)
        except Exception as error:
            self._fail(error)
            return Directive(stop=True)

    def on_tokens(self, tokens: Sequence[int], forced: bool) -> None:
        """Stream what the engine wrote; an error ends this row alone."""
        if self._finished:
            return
        try:
            super().on_tokens(tokens, forced)
        except Exception as error:
            self._fail(error)

    def on_finish(self, completion: Completion) -> None:
        """Send the result, once, without waiting for other rows; see `types.CompletionListener`."""
        if self._finished:
            return
        try:
            self._finish(completion)
        except Exception as error:
            self._fail(error)
        self._finished = True

    def _fail(self, error: Exception) -> None:
        self._finished = True
        _log.error("a row failed", exc_info=error)
        self.pending.send(_engine_failed())
        self.pending.cancel()

    def _finish(self, completion: Completion) -> None:
        request = self.pending.request
        result = self.result(completion)
        if request.note:
            result = replace(result, trace=(Decision("server", "tier", request.note, 0), *result.trace))
        content, calls = split_tool_calls(result.answer) if request.options.tools else (result.answer, [])
        self.emitter.finish_row(0, result.thinking, content)
        budget = self.prepared.budget.thinking
        self.metrics.add_result(result, budget, request.options.shadow)
        self.pending.send(RowFinished(self.number, result, budget, content, calls))


class BatchWorker:
    """Answers requests on a session, which belongs to the worker's thread from `start` on."""

    def __init__(self, session: Session, limits: ServerLimits, metrics: Metrics, thinks: bool = True) -> None:
        self.session, self.limits, self.metrics = session, limits, metrics
        template = str(getattr(session.engine.tokenizer, "chat_template", None) or "")
        self.model_info = ModelInfo(thinks, "tools" in template, session.engine.context_length)
        self.accepting, self._closing = True, False
        self._drift: dict[str, Decision] = {}  # by policy: questions no longer resemble those of its certificate
        self._waiting: deque[PendingResponse] = deque()
        self._running: list[PendingResponse] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tersely-worker", daemon=True)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        with self._changed:
            return not self._waiting and not self._running

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: ResolvedRequest, streams: bool) -> PendingResponse:
        """Queue a request; raises RequestError if the queue is full or the server is shutting down."""
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

    def drain(self) -> None:
        """Accept no more requests."""
        with self._changed:
            self.accepting = False
            self._changed.notify()

    def abort(self) -> None:
        """Fail all requests; does not block."""
        with self._changed:
            self.accepting = False
            for pending in (*self._waiting, *self._running):
                pending.send(shutting_down())
                pending.cancel()

    def close(self) -> None:
        """Fail what is left, end the thread and free the model; blocks."""
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
                    pending.send(_engine_failed())
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
        rows = [row for pending in batch for row in self._prepare(pending)]
        if not rows:
            return
        try:
            completions = decode(rows, batch[0].request.options.sampling)
        finally:
            for policy in distinct_policies([row.prepared for row in rows]):
                if (note := policy.end_batch()) is not None and policy.name not in self._drift:
                    self._drift[policy.name] = Decision(policy.name, "drift", note, 0, acted=False)
                    _log.warning("%s: %s", policy.name, note)
        for row, completion in zip(rows, completions, strict=True):
            row.on_finish(completion)

    def _prepare(self, pending: PendingResponse) -> list[ServedRow]:
        """The rows of a request; [] after telling the client why it cannot be answered."""
        request = pending.request
        try:
            prepared = self.session.prepare([request.messages] * request.n, request.options)
            size, limit = len(prepared[0].request.prompt_ids), self.limits.prompt
            if limit is not None and size > limit:
                message = f"the prompt has {size} tokens; accepted: at most {limit}"
                raise RequestError(message, param=request.prompt_field, code="context_length_exceeded")
            for row in prepared:
                row.notes.extend(self._drift[policy.name] for policy in row.policies if policy.name in self._drift)
                row.request = replace(row.request, max_new_tokens=min(row.request.max_new_tokens, request.max_tokens))
            return [ServedRow(pending, i, self.session, row, self.metrics) for i, row in enumerate(prepared)]
        except Exception as error:  # only this request fails; the rest of the batch goes on
            pending.send(_to_request_error(error, request.prompt_field))
            return []


def shutting_down() -> RequestError:
    """The refusal of requests that come too late."""
    return RequestError("the server is shutting down", 503, code="shutting_down", retry_after=5)


def _engine_failed() -> RequestError:
    return RequestError("the engine failed; see the server log", 500, code="engine_failed")


def _to_request_error(error: Exception, prompt_field: str) -> RequestError:
    """Why a request could not be prepared."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PromptError):
        return RequestError(str(error), param=prompt_field)
    if isinstance(error, TerselyError):
        return RequestError(str(error), param="tersely" if isinstance(error, CapabilityError | ProbeError) else None)
    if isinstance(error, TemplateError):
        return RequestError(f"the model's chat template refuses these messages: {error}", param=prompt_field)
    _log.error("a request could not be prepared", exc_info=error)
    return RequestError("the request could not be prepared; see the server log", 500, code="engine_failed")


def _batch_key(request: ResolvedRequest) -> Hashable:
    """What requests of one batch have in common.

    A sampled request with a seed is a batch of its own, so that the seed alone determines its output.
    """
    sampling = request.options.sampling
    alone = sampling.seed is not None and sampling.temperature != 0
    return sampling, id(request) if alone else None
