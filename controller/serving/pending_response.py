"""What a request looks like from the event loop while the worker's thread answers it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ..streaming import TextDeltaEvent
from ..text.tool_calls import parse_tool_calls
from ..trace import GenerationResult
from .errors import RequestError
from .settings import ResolvedRequest


@dataclass(frozen=True, slots=True)
class RowFinished:
    """The end of a row.

    Attributes:
        budget: Thinking tokens that the row was allowed.
        content: The answer without tool calls.
        tool_calls: The tool calls in OpenAI's form.
    """

    row: int
    result: GenerationResult
    budget: int
    content: str
    tool_calls: Sequence[dict[str, object]] = ()

    @property
    def finish_reason(self) -> str:
        """The finish reason in OpenAI's words; how the thinking ended is in the trace."""
        if self.tool_calls:
            return "tool_calls"
        return "length" if self.result.finish_reason == "length" else "stop"


Event = TextDeltaEvent | RowFinished


class PendingResponse:
    """A request that waits or is being answered.

    Created in the event loop. `send` and `fail` may be called from any thread, all else from the loop only.
    """

    def __init__(self, request: ResolvedRequest, streams: bool, timeout: float) -> None:
        self.request, self.streams = request, streams
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout
        self._events: asyncio.Queue[Event | RequestError] = asyncio.Queue()

    def send(self, event: Event | RequestError) -> None:
        """Hand an event, or the error that replaces all further ones, to the event loop."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed
            self.cancelled = True

    def cancel(self) -> None:
        """End the rows at their next token, or leave the queue."""
        self.cancelled = True

    async def next(self) -> Event:
        """The next event; raises RequestError if there is none, or on timeout."""
        try:
            async with asyncio.timeout_at(self._deadline):
                event = await self._events.get()
        except TimeoutError:
            self.cancel()
            raise RequestError(f"not answered within {self._timeout:g} s", 504, code="timeout") from None
        if isinstance(event, RequestError):
            raise event
        return event

    async def events(self, first: Event) -> AsyncIterator[Event]:
        """All events, from the first one until every row has finished."""
        event, open_rows = first, self.request.n
        while True:
            yield event
            open_rows -= isinstance(event, RowFinished)
            if not open_rows:
                return
            event = await self.next()


def split_tool_calls(answer: str) -> tuple[str, list[dict[str, object]]]:
    """An answer without its tool calls, and these in OpenAI's form; malformed calls stay text."""
    text, calls = parse_tool_calls(answer)
    for call in calls:
        if call.error is not None:
            text = f"{text}\n{call.text}".strip()
    return text, [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for call in calls
        if call.error is None
    ]
