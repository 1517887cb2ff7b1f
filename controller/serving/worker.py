"""What the workers of both kinds of servers have in common: rows that are being answered, and what requests become.

`BatchWorker` decodes on an engine of this process, `UpstreamWorker` on a server.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ...errors import CapabilityError, PromptError, TerselyError
from ..options import GenerationOptions, make_options
from ..probe_registry import ProbeError
from ..request_builder import PreparedRequest, distinct_policies
from ..session import BatchRow, Session
from ..streaming import TextDeltaEvent
from ..text.sanitizer import get_sanitizer, sanitize_messages
from ..text.tool_calls import OPEN
from ..trace import Decision
from ..types import KEEP, Completion, Directive, StepInfo
from .errors import RequestError
from .limits import PromptLimit
from .metrics import CANCELLED, Metrics
from .replies import PendingResponse, RowFinished, split_tool_calls
from .rules import RequestRules
from .settings import ModelInfo, ResolvedRequest, ServerLimits

_log = logging.getLogger(__name__)
_SHORT = 8_000  # characters of a request's text that take less time than handing it to a thread and back
A = TypeVar("A")
T = TypeVar("T")


class ServedRow(BatchRow):
    """One row of a request while an engine decodes it; implements `types.CompletionListener`."""

    def __init__(
        self, pending: PendingResponse, number: int, session: Session, prepared: PreparedRequest, metrics: Metrics
    ) -> None:
        request = pending.request

        def emit(event: TextDeltaEvent) -> None:
            if event.text:
                self.sent = True
                pending.send(event)

        super().__init__(
            session,
            prepared,
            lambda: pending.cancelled or self._finished,
            request.stops,
            OPEN if request.options.tools else "",
            emit if pending.streams else None,
            number,
        )
        self.pending, self.number, self.metrics = pending, number, metrics
        self.has_fallback = False  # whether somebody else answers, should this fail before anything was sent
        self.sent = self.failed = self._finished = False

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `types.Watcher`; after an error in the controller the row goes on without control."""
        try:
            return super().observe(token, step)
        except Exception as error:
            return self._lose_control(error)

    def resume(self) -> Directive:
        """See `SuspendableWatcher`; an error is handled likewise."""
        try:
            return super().resume()
        except Exception as error:
            return self._lose_control(error)

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

    def _lose_control(self, error: Exception) -> Directive:
        """Go on without control; a trial in progress is taken back."""
        _log.error("control of a row failed, which goes on without", exc_info=error)
        self.metrics.control_failures.labels("thinking").inc()
        controller = self.prepared.controller
        position = 0 if controller is None else controller.position
        self.prepared.notes.append(lost_control("in the thinking", error, position))
        trial, self.inner, self._trial_tokens = self._trial_tokens, None, 0
        return Directive(retract=trial + 1, trial=False) if trial else KEEP

    def _fail(self, error: Exception) -> None:
        self._finished = self.failed = True
        _log.error("a row failed", exc_info=error)
        if self.has_fallback and not self.sent:
            return
        self.pending.send(engine_failed())
        self.pending.cancel()

    def _finish(self, completion: Completion) -> None:
        request = self.pending.request
        result = self.result(completion)
        result = replace(result, trace=(*request.notes, *result.trace))
        content, calls = split_tool_calls(result.answer) if request.options.tools else (result.answer, [])
        self.emitter.finish(result.thinking, content)
        if self.pending.cancelled:
            result = replace(result, finish_reason=CANCELLED)
        kept = not request.options.shadow and any(policy.name == "budget" for policy in self.prepared.policies)
        budget = self.prepared.budget.thinking if kept or request.effort == "none" else None
        self.metrics.add_result(result, budget, request.billing)
        self.pending.send(RowFinished(self.number, result, budget, content, calls))


class RequestWorker(ABC):
    """Answers the requests to one model."""

    def __init__(self, limits: ServerLimits, metrics: Metrics, model_info: ModelInfo) -> None:
        self.limits, self.metrics, self.model_info = limits, metrics, model_info
        self.accepting, self.lost_until = True, 0.0  # by the monotonic clock: no connection to the server that answers

    @property
    @abstractmethod
    def unfinished(self) -> Sequence[PendingResponse]:
        """The requests that wait or run."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.unfinished

    @abstractmethod
    def start(self) -> None:
        """Begin to answer."""

    @abstractmethod
    def submit(self, request: ResolvedRequest, streams: bool) -> PendingResponse:
        """Take a request; raises RequestError if too many wait or the server is shutting down."""

    def drain(self) -> None:
        """Accept no more requests."""
        self.accepting = False

    def abort(self) -> None:
        """Fail all requests; does not block."""
        self.drain()
        for pending in self.unfinished:
            pending.send(shutting_down())
            pending.cancel()

    @abstractmethod
    def close(self) -> None:
        """Fail what is left and free the engine; blocks."""

    @abstractmethod
    async def admit(self, request: ResolvedRequest, special_tokens: bool) -> ResolvedRequest:
        """A request that this worker can take, with its text made safe unless special tokens are allowed.

        Raises RequestError for one that it cannot take.
        """

    @abstractmethod
    def check(self, rules: RequestRules, of_key: bool = False) -> None:
        """Raise TerselyError for rules, those of all requests or of a key's, that the engine cannot keep."""


class SessionWorker(RequestWorker):
    """A worker on a session, which it owns from `start` on."""

    def __init__(self, session: Session, limits: ServerLimits, metrics: Metrics, thinks: bool = True) -> None:
        template = str(getattr(session.engine.tokenizer, "chat_template", None) or "")
        context = session.engine.context_length
        super().__init__(limits, metrics, ModelInfo(thinks, tools="tools" in template, context=context))
        self.session = session
        self._sanitize = get_sanitizer(session.engine.tokenizer, session.markers)
        self._prompt_limit = PromptLimit(
            session.engine.tokenizer, min((size for size in (limits.prompt, context) if size is not None), default=None)
        )
        self._drift: dict[str, Decision] = {}  # by policy: questions no longer resemble those of its certificate

    async def admit(self, request: ResolvedRequest, special_tokens: bool) -> ResolvedRequest:
        await self._prompt_limit.check(request.messages, request.options.tools, request.prompt_field)
        return request if special_tokens else await run_aside(self._without_special_tokens, request, request)

    def check(self, rules: RequestRules, of_key: bool = False) -> None:
        """See `RequestWorker.check`; prepares a tiny prompt."""
        if self.model_info.thinks:
            self.session.prepare(["1 + 1"], make_options(rules.options, max_new_tokens=2, answer_reserve=1))

    def _without_special_tokens(self, request: ResolvedRequest) -> ResolvedRequest:
        """The request with its text made safe; takes as long as tokenizing it."""
        tools = tuple(self._sanitize.sanitize_all(request.options.tools))
        options = make_options(request.options, tools=tools) if tools else request.options
        return replace(request, messages=sanitize_messages(request.messages, self._sanitize), options=options)

    def prepare(self, pending: PendingResponse) -> list[ServedRow]:
        """The rows of a request, without control where that cannot be prepared; raises RequestError."""
        request = pending.request
        try:
            return self._prepare(pending, request.options)
        except Exception as error:
            if isinstance(error, TerselyError):
                raise _to_request_error(error, request.prompt_field) from error
            _log.error("control of a request could not be prepared, which goes on without", exc_info=error)
            note = lost_control("before the thinking", error)
        self.metrics.control_failures.labels("prepare").inc()
        try:
            rows = self._prepare(pending, make_options(request.options, preset="off", policies=None, modifiers=()))
        except Exception as error:
            raise _to_request_error(error, request.prompt_field) from error
        for row in rows:
            row.prepared.notes.append(note)
        return rows

    def _prepare(self, pending: PendingResponse, options: GenerationOptions) -> list[ServedRow]:
        request = pending.request
        prepared = self.session.prepare([request.messages] * request.n, options)
        size, limit = len(prepared[0].request.prompt_ids), self.limits.prompt
        if limit is not None and size > limit:
            message = f"the prompt has {size} tokens; accepted: at most {limit}"
            raise RequestError(message, param=request.prompt_field, code="context_length_exceeded")
        for row in prepared:
            row.notes.extend(self._drift[policy.name] for policy in row.policies if policy.name in self._drift)
            row.request = replace(row.request, max_new_tokens=min(row.request.max_new_tokens, request.max_tokens))
        return [ServedRow(pending, i, self.session, row, self.metrics) for i, row in enumerate(prepared)]

    def note_drift(self, rows: Sequence[ServedRow]) -> None:
        """Keep what policies report about finished rows, for the traces of later ones."""
        for policy in distinct_policies([row.prepared for row in rows]):
            if (note := policy.end_batch()) is not None and policy.name not in self._drift:
                self._drift[policy.name] = Decision(policy.name, "drift", note, 0, acted=False)
                _log.warning("%s: %s", policy.name, note)


async def run_aside(work: Callable[[A], T], given: A, request: ResolvedRequest) -> T:
    """Do work on a request's text in a thread; at once where it is short, for which other requests need not wait."""
    if len(str(request.messages)) + len(str(request.options.tools)) < _SHORT:
        return work(given)
    return await asyncio.to_thread(work, given)


def lost_control(where: str, error: Exception, position: int = 0) -> Decision:
    """The decision of a trace that says that a request went on without control."""
    reason = f"not under control any more, after an error {where}: {type(error).__name__}"
    return Decision("server", "error", reason, position, acted=False)


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
