"""Answers requests on a server behind this one, each as soon as it comes: that server does the batching."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ...errors import CapabilityError, ModelError, TerselyError
from ..budgets import canonical_effort
from ..chat_model import ChatModel, ChatQuestion
from ..engines.openai import CompletionBackend, StreamError, run_together
from ..engines.openai.client import RefusedError
from ..engines.openai.engine import RemoteEngine
from ..session import Session, make_sink
from ..streaming import TextDeltaEvent
from ..trace import Decision, GenerationResult, Usage
from .errors import RequestError
from .metrics import CANCELLED, Metrics
from .replies import PendingResponse, RowFinished
from .rules import RequestRules
from .settings import ModelInfo, ResolvedRequest, ServerLimits
from .worker import RequestWorker, ServedRow, SessionWorker, engine_failed, lost_control, run_aside, shutting_down

_log = logging.getLogger(__name__)
_CLOSE_TIMEOUT = 5.0  # seconds
_LONGEST_REST = 5.0  # seconds that clients wait for a busy server without being told
_LOST = 30.0  # seconds for which a server counts as lost; without requests nothing would say that it is back
_BUSY = (429, 503)  # statuses that are passed on
_OF_CLIENTS = (400, 413, 415, 422, 451)  # those of requests that are the client's own fault, with the reason


class LoopWorker(RequestWorker):
    """A worker in the event loop of the application; at most `limits.batch` requests are upstream at a time."""

    def __init__(self, limits: ServerLimits, metrics: Metrics, model_info: ModelInfo) -> None:
        super().__init__(limits, metrics, model_info)
        self._tasks: dict[asyncio.Task[None], PendingResponse] = {}
        self._slots = asyncio.Semaphore(limits.batch)

    @property
    def unfinished(self) -> Sequence[PendingResponse]:
        return list(self._tasks.values())

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def submit(self, request: ResolvedRequest, streams: bool) -> PendingResponse:
        if not self.accepting:
            raise shutting_down()
        if (open_requests := len(self._tasks)) >= self.limits.batch + self.limits.waiting:
            raise RequestError(f"{open_requests} requests are open; try again", 503, code="busy", retry_after=1)
        pending = PendingResponse(request, streams, self.limits.timeout)
        task = asyncio.create_task(self._run(pending))
        self._tasks[task] = pending
        task.add_done_callback(self._tasks.pop)
        pending.on_cancel = task.cancel
        return pending

    def _close_connections(self, opened: ChatModel | CompletionBackend) -> None:
        """Close what this loop has opened; called from another thread."""
        with suppress(RuntimeError, TimeoutError):  # the loop is closed, or busy
            asyncio.run_coroutine_threadsafe(opened.close(), self._loop).result(_CLOSE_TIMEOUT)

    @abstractmethod
    async def _answer(self, pending: PendingResponse) -> None:
        """Answer one request; cancelling this closes its streams upstream."""

    async def _run(self, pending: PendingResponse) -> None:
        """Answer one request, or say why that is impossible."""
        async with self._slots:
            try:
                await self._answer(pending)
            except RequestError as error:
                pending.send(error)
            except ModelError as error:
                _log.error("the upstream server failed: %s", _describe(error))
                if isinstance(getattr(error.__cause__, "__cause__", None), OSError):  # no connection
                    self.lost_until = time.monotonic() + _LOST
                pending.send(_upstream_failed(error))
            except Exception:
                _log.exception("a request failed")
                pending.send(engine_failed())
            finally:
                if pending.answered:  # perhaps cancelled just now, as the last row was there
                    self.lost_until = 0.0

    async def _chat(self, upstream: ChatModel, pending: PendingResponse, number: int) -> None:
        """Answer one row through a chat endpoint."""
        request, spent = pending.request, Counter[str]()

        def emit(event: TextDeltaEvent) -> None:
            spent[event.channel] += 1
            if pending.streams:
                pending.send(event)

        try:
            asked = ChatQuestion(
                request.messages,
                request.options,
                request.asked_tokens,
                request.stops,
                request.has_effort,
                request.passed,
            )
            answer = await upstream.answer(asked, number, emit)
        except asyncio.CancelledError:  # what was written until then counts, by pieces of the stream
            usage = Usage(thinking=spent["thinking"], answer=spent["answer"])
            result = GenerationResult("", "", "", CANCELLED, canonical_effort(request.effort), usage)
            if pending.cancelled:  # by its client, and not because another row failed
                self._finish(pending, RowFinished(number, result, None, ""))
            raise
        except TerselyError as error:
            if isinstance(error, ModelError):
                raise
            raise RequestError(str(error), param=request.prompt_field) from None
        note = Decision("server", "note", upstream.dialect.describe(), 0, acted=False)
        result = replace(answer.result, trace=(*request.notes, note, *answer.result.trace))
        budget = answer.budget if upstream.dialect.budget_fields or not answer.budget else None
        finished = RowFinished(number, result, budget, result.answer, answer.tool_calls)
        self._finish(pending, replace(finished, cached=answer.cached, logprobs=answer.logprobs))

    def _finish(self, pending: PendingResponse, row: RowFinished) -> None:
        self.metrics.add_result(row.result, row.budget, pending.request.billing)
        pending.send(row)


class ChatWorker(LoopWorker):
    """A worker on a server that has only a chat endpoint: efforts and limits are passed on, no policy acts."""

    def __init__(self, upstream: ChatModel, limits: ServerLimits, metrics: Metrics) -> None:
        budgets, context = bool(upstream.dialect.budget_fields), upstream.context
        super().__init__(limits, metrics, ModelInfo(policies=False, budgets=budgets, tools=True, context=context))
        self.upstream, upstream.longest_rest = upstream, _LONGEST_REST

    async def admit(self, request: ResolvedRequest, special_tokens: bool) -> ResolvedRequest:
        """See `RequestWorker.admit`; the upstream server renders the text and has to keep it safe."""
        return request

    def check(self, rules: RequestRules, of_key: bool = False) -> None:
        """See `RequestWorker.check`; a key whose ceiling cannot be kept is refused with each request."""
        if of_key:
            return
        defaults = rules.rules.defaults
        unkept: dict[str, object] = {
            "defaults.policies": defaults.policies,
            "defaults.preset": defaults.preset not in (None, "off"),
            "defaults.tuned": defaults.tuned,
            "shadow_share": rules.rules.shadow_share,
            "control_share": rules.rules.control_share not in (None, 1.0),
        }
        if not self.model_info.budgets:
            unkept |= {
                "ceilings.thinking_tokens": (rules.max_thinking or rules.max_tokens) < rules.max_tokens,
                "defaults.thinking_tokens": (defaults.thinking_tokens or rules.max_tokens) < rules.max_tokens,
                "defaults.budgets": defaults.budgets,
            }
        if names := [name for name, given in unkept.items() if given]:
            raise CapabilityError(
                f"{self.upstream.dialect.describe()}, so {', '.join(names)} cannot be kept; set other values in "
                "[models.NAME]: preset 'off', shares of 0 or 1, thinking_tokens of at least max_tokens",
                code="chat_endpoint_only",
            )

    def close(self) -> None:
        self.abort()
        self._close_connections(self.upstream)

    async def _answer(self, pending: PendingResponse) -> None:
        await run_together(self._chat(self.upstream, pending, number) for number in range(pending.request.n))


class UpstreamWorker(SessionWorker, LoopWorker):
    """A worker under control on a session whose engine is a `RemoteEngine`.

    `fallback` is the chat endpoint of the same server, which answers without control where that fails altogether.
    """

    def __init__(
        self,
        session: Session,
        limits: ServerLimits,
        metrics: Metrics,
        thinks: bool = True,
        fallback: ChatModel | None = None,
    ) -> None:
        super().__init__(session, limits, metrics, thinks)
        assert isinstance(session.engine, RemoteEngine)
        self.engine, self.fallback = session.engine, fallback
        self.engine.longest_rest = _LONGEST_REST
        self.engine.name = "the upstream server"  # in errors for clients, who need not know where it is
        self._preparing = asyncio.Lock()

    def close(self) -> None:
        self.abort()
        self._close_connections(self.engine.backend)
        self.engine.close()
        if self.fallback is not None:
            self._close_connections(self.fallback)

    async def _answer(self, pending: PendingResponse) -> None:
        try:
            async with self._preparing:  # the templates of many long prompts would take all threads
                rows = await run_aside(self.prepare, pending, pending.request)
        except RequestError as error:
            if error.status != 500 or self.fallback is None:
                raise
            await self._fall_back(self.fallback, pending, range(pending.request.n), error)
            return
        await self._decode(pending, rows)

    async def _decode(self, pending: PendingResponse, rows: Sequence[ServedRow]) -> None:
        for row in rows:
            row.has_fallback = self.fallback is not None
        sampling = pending.request.options.sampling
        completions = await self.engine.generate_in_loop([row.request for row in rows], sampling, make_sink(rows))
        self.note_drift(rows)
        for row, completion in zip(rows, completions, strict=True):
            row.on_finish(completion)
        failed = [row.number for row in rows if row.failed and not row.sent]
        if failed and self.fallback is not None and not pending.cancelled:
            await self._fall_back(self.fallback, pending, failed, RuntimeError())

    async def _fall_back(
        self, upstream: ChatModel, pending: PendingResponse, rows: Sequence[int], error: Exception
    ) -> None:
        """Have the chat endpoint answer rows without control."""
        note = lost_control("that left the answer to the chat endpoint", error)
        billing = replace(pending.request.billing, control="off")
        pending.request = replace(pending.request, notes=(*pending.request.notes, note), billing=billing)
        for number in rows:
            self.metrics.control_failures.labels("fallback").inc()
            await self._chat(upstream, pending, number)


def _describe(error: ModelError) -> str:
    """What failed, without the words of the server, which may repeat what it was asked."""
    cause = error.__cause__
    status = getattr(error if isinstance(error, RefusedError) else cause, "status", 0)
    return f"{error.code}, status {status}" if status else str(error)


def _upstream_failed(error: ModelError) -> RequestError:
    """The error for clients, who need not know where the upstream server is."""
    cause = error.__cause__
    if isinstance(error, RefusedError) and error.status in _OF_CLIENTS:
        return RequestError(status=error.status, **{"code": error.code, **error.details})
    if error.code == "invalid_api_key":
        return RequestError("the upstream server does not accept this gateway", 502, code="upstream_key_refused")
    if isinstance(cause, StreamError) and cause.status in _BUSY:
        seconds = max(1, round(cause.retry_after))
        return RequestError("the upstream server is busy; try again", cause.status, code="busy", retry_after=seconds)
    if error.code == "server_lost":
        return RequestError("the upstream server was lost; try again", 502, code=error.code, retry_after=1)
    what = "refused the request" if isinstance(error, RefusedError) else "failed"
    return RequestError(f"the upstream server {what}; see the server log", 502, code=error.code)
