"""What the workers of both kinds of servers have in common: rows that are being answered, and what requests become.

`BatchWorker` decodes on an engine of this process, `UpstreamWorker` on a server.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from ...errors import CapabilityError, PromptError, TerselyError
from ..batch import BatchRow
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
        self.pending.send(engine_failed())
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


class RequestWorker(ABC):
    """Answers requests on a session, which it owns from `start` on."""

    def __init__(self, session: Session, limits: ServerLimits, metrics: Metrics, thinks: bool = True) -> None:
        self.session, self.limits, self.metrics = session, limits, metrics
        template = str(getattr(session.engine.tokenizer, "chat_template", None) or "")
        self.model_info = ModelInfo(thinks, "tools" in template, session.engine.context_length)
        self.accepting = True
        self._drift: dict[str, Decision] = {}  # by policy: questions no longer resemble those of its certificate

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""

    @abstractmethod
    def start(self) -> None:
        """Begin to answer."""

    @abstractmethod
    def submit(self, request: ResolvedRequest, streams: bool) -> PendingResponse:
        """Take a request; raises RequestError if too many wait or the server is shutting down."""

    @abstractmethod
    def drain(self) -> None:
        """Accept no more requests."""

    @abstractmethod
    def abort(self) -> None:
        """Fail all requests; does not block."""

    @abstractmethod
    def close(self) -> None:
        """Fail what is left and free the engine; blocks."""

    def prepare(self, pending: PendingResponse) -> list[ServedRow]:
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

    def note_drift(self, rows: Sequence[ServedRow]) -> None:
        """Keep what policies report about finished rows, for the traces of later ones."""
        for policy in distinct_policies([row.prepared for row in rows]):
            if (note := policy.end_batch()) is not None and policy.name not in self._drift:
                self._drift[policy.name] = Decision(policy.name, "drift", note, 0, acted=False)
                _log.warning("%s: %s", policy.name, note)


def shutting_down() -> RequestError:
    """The refusal of requests that come too late."""
    return RequestError("the server is shutting down", 503, code="shutting_down", retry_after=5)


def engine_failed() -> RequestError:
    """The error for a request that failed for a reason of this server."""
    return RequestError("the engine failed; see the server log", 500, code="engine_failed")


def _to_request_error(error: Exception, prompt_field: str) -> RequestError:
    """Why a request could not be prepared."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PromptError):
        return RequestError(str(error), param=prompt_field)
    if isinstance(error, TerselyError):
        return RequestError(str(error), param="tersely" if isinstance(error, CapabilityError | ProbeError) else None)
    _log.error("a request could not be prepared", exc_info=error)
    return RequestError("the request could not be prepared; see the server log", 500, code="engine_failed")
