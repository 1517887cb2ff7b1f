"""Where a request of any endpoint is taken in, waited for, and given up when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .errors import CLIENT_LEFT, RequestError
from .pending_response import Backend, Event, RowFinished
from .resolved_request import ResolvedRequest, resolve_request
from .schemas import ParsedRequest
from .settings import ServerSettings
from .tracing import Span, Spans

T = TypeVar("T")


class Reply(Protocol):
    """The form of an endpoint's replies."""

    def whole(self, rows: Sequence[RowFinished]) -> dict[str, Any]:
        """The reply in one piece; rows in their order."""
        ...

    def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The reply in server-sent events; tells of a refusal on the way."""
        ...


class CompletionService:
    """Takes requests in for a backend."""

    def __init__(self, settings: ServerSettings, backend: Backend) -> None:
        self.settings, self.backend, self.spans = settings, backend, Spans()

    async def answer(
        self, request: Request, asked: ParsedRequest, streams: bool, reply_of: Callable[[ResolvedRequest], Reply]
    ) -> Response:
        """The response to a request; raises RequestError.

        A stream begins with its first event, so that what is wrong with a request is said by the status.
        """
        wish = resolve_request(asked, self.settings, self.backend.abilities)
        reply = reply_of(wish)
        with ExitStack() as stack:
            span = stack.enter_context(self.spans.span(wish.model))
            ticket = self.backend.submit(wish, streams)
            stack.callback(ticket.cancel)
            try:
                first = await _unless_left(request, ticket.next())
                events = _noted(request, ticket.events(first), span)
                if streams:
                    return _Stream(request, reply.stream(events), stack.pop_all())
                rows = await _unless_left(request, _ends(events))
            except _ClientDisconnected:
                _note(request, span, CLIENT_LEFT)
                return Response(status_code=CLIENT_LEFT)
            return JSONResponse(reply.whole(rows))


class _ClientDisconnected(Exception):  # noqa: N818  # no error of ours
    """The client has gone."""


class _Stream(StreamingResponse):
    """Server-sent events; what is open is closed when they end, however that is."""

    def __init__(self, request: Request, lines: AsyncIterator[str], stack: ExitStack) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._followed(lines), media_type="text/event-stream", headers=headers)
        self.request, self.stack, self.complete = request, stack, False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        with self.stack:
            try:
                await super().__call__(scope, receive, send)
            finally:
                if not self.complete:
                    self.request.state.status = CLIENT_LEFT

    async def _followed(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line
        self.complete = True


async def _ends(events: AsyncIterator[Event]) -> list[RowFinished]:
    """The ends of all rows, in the order of the rows."""
    ends = [happened async for happened in events if isinstance(happened, RowFinished)]
    return sorted(ends, key=lambda ended: ended.row)


async def _noted(request: Request, events: AsyncIterator[Event], span: Span) -> AsyncIterator[Event]:
    """The events, noted in the span and, where they end badly, for the metrics."""
    ends: list[RowFinished] = []
    try:
        async for happened in events:
            if isinstance(happened, RowFinished):
                ends.append(happened)
            yield happened
    except RequestError as refusal:
        _note(request, span, refusal.status)
        raise
    span.answered([ended.generation for ended in ends], ends[0].budget)


def _note(request: Request, span: Span, status: int) -> None:
    """Note how a request ended whose status was sent before, or will not be read."""
    request.state.status = status
    span.failed(str(status))


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for something as long as the client does; raises _Left when it has gone."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _ClientDisconnected
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
