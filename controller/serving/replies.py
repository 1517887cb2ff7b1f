"""What the worker's thread sends back to the event loop: as chat completions, whole and streamed, and recorded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ..streaming import TextDeltaEvent
from ..text.tool_calls import parse_tool_calls
from ..trace import GenerationResult
from .errors import TIMED_OUT, RequestError
from .settings import ResolvedRequest


@dataclass(frozen=True, slots=True)
class RowFinished:
    """The end of a row."""

    row: int
    result: GenerationResult
    budget: int | None  # thinking tokens that the row was allowed; None is any number
    content: str  # the answer without tool calls
    tool_calls: Sequence[dict[str, object]] = ()  # in OpenAI's form
    cached: int = 0  # prompt tokens that were not read again
    logprobs: Mapping[str, Any] | None = None  # in OpenAI's form

    @property
    def finish_reason(self) -> str:
        """The finish reason in OpenAI's words; how the thinking ended is in the trace."""
        reason = self.result.finish_reason
        if reason in ("length", "content_filter"):
            return reason
        return "tool_calls" if self.tool_calls else "stop"


Event = TextDeltaEvent | RowFinished
_log = logging.getLogger(__name__)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class PendingResponse:
    """A request that waits or is being answered.

    Created in the event loop. `send` and `cancel` may be called from any thread, all else from the loop only.
    """

    def __init__(self, request: ResolvedRequest, streams: bool, timeout: float) -> None:
        self.request, self.streams = request, streams
        self.cancelled = self.answered = False
        self.rows: list[RowFinished] = []  # as `next` returned them
        self.on_cancel: Callable[[], object] | None = None
        """Called in the event loop when this is cancelled, for work that does not look at `cancelled`."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._events: asyncio.Queue[Event | RequestError] = asyncio.Queue()
        self._timer = self._loop.call_later(timeout, self._time_out, timeout)

    def send(self, event: Event | RequestError) -> None:
        """Hand an event, or the error that replaces all further ones, to the event loop."""
        self.answered |= isinstance(event, RowFinished) and not self.cancelled
        if threading.get_ident() == self._thread:
            self._events.put_nowait(event)
            return
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed
            self.cancelled = True

    def cancel(self) -> None:
        """End the rows at their next token, or leave the queue; may be called from any thread."""
        self.cancelled = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._timer.cancel)
            if self.on_cancel is not None:
                self._loop.call_soon_threadsafe(self.on_cancel)

    def _time_out(self, seconds: float) -> None:
        self.send(RequestError(f"not answered within {seconds:g} s", TIMED_OUT, code="timeout"))
        self.cancel()

    async def next(self) -> Event:
        """The next event; raises RequestError if there is none, or on timeout."""
        event = await self._events.get()
        if isinstance(event, RequestError):
            raise event
        self.rows += [event] if isinstance(event, RowFinished) else []
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


def control_metadata(request: ResolvedRequest, row: RowFinished) -> dict[str, Any]:
    """The field `tersely` of a reply."""
    metadata = {
        "effort": request.effort,
        "tier": row.result.tier,
        "budget": row.budget,
        "shadow": request.options.shadow,
        "usage": row.result.usage.as_dict(),
    }
    return {**metadata, "decisions": [asdict(d) for d in row.result.trace]} if request.include_trace else metadata


def openai_usage(rows: Sequence[RowFinished]) -> dict[str, Any]:
    """Usage in OpenAI's form: tokens of the texts; overhead is in the field `tersely`."""
    results = [row.result for row in rows]
    prompt = results[0].usage.prompt
    thinking = sum(result.usage.thinking for result in results)
    completion = thinking + sum(result.usage.answer for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": rows[0].cached},
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }


def sse_event(data: Mapping[str, Any], name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {_ENCODER.encode(data)}\n\n"


@dataclass(slots=True)
class ChatReply:
    """One reply."""

    request: ResolvedRequest
    include_usage: bool = False  # at the end of a stream
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def to_json(self, rows: Sequence[RowFinished]) -> dict[str, Any]:
        """The whole reply; `rows` in their order."""
        choices = [
            {
                "index": row.row,
                "message": _message(row),
                "finish_reason": row.finish_reason,
                "logprobs": row.logprobs,
                "tersely": control_metadata(self.request, row),
            }
            for row in rows
        ]
        usage = openai_usage(rows)
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The reply as server-sent events; an error ends it with an event of its own."""
        try:
            for row in range(self.request.n):
                yield self._chunk(row, {"role": "assistant", "content": ""})
            rows: list[RowFinished] = []
            async for event in events:
                for chunk in self._chunks(event):
                    yield chunk
                if isinstance(event, RowFinished):
                    rows.append(event)
            if self.include_usage:
                yield sse_event({**self._head("chat.completion.chunk"), "choices": [], "usage": openai_usage(rows)})
        except RequestError as refusal:
            yield sse_event(refusal.body)
        yield "data: [DONE]\n\n"

    def _chunks(self, event: Event) -> Iterator[str]:
        if not isinstance(event, RowFinished):
            delta = {"content": event.text} if event.channel == "answer" else _reasoning(event.text)
            yield self._chunk(event.row, delta)
            return
        if event.tool_calls:
            yield self._chunk(event.row, {"tool_calls": [{"index": n, **c} for n, c in enumerate(event.tool_calls)]})
        last = {"logprobs": event.logprobs, "tersely": control_metadata(self.request, event)}
        yield self._chunk(event.row, {}, event.finish_reason, **last)

    def _chunk(self, row: int, delta: Mapping[str, Any], finish: str | None = None, **fields: Any) -> str:
        choice = {"index": row, "delta": delta, "finish_reason": finish, "logprobs": None, **fields}
        usage = {"usage": None} if self.include_usage else {}
        return sse_event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}


def _message(row: RowFinished) -> dict[str, Any]:
    calls = {"tool_calls": list(row.tool_calls)} if row.tool_calls else {}
    content = row.content or None if row.tool_calls else row.content
    return {"role": "assistant", **calls, "content": content, **_reasoning(row.result.thinking)}


def _reasoning(text: str) -> dict[str, str | None]:
    """Thinking under both names that clients look for."""
    return {"reasoning": text or None, "reasoning_content": text or None}


class ReplyRecorder:
    """Appends questions and replies without control to a file, as `tersely replay` reads them.

    The file is made for its owner alone, and opened for each reply, so that it can be moved away meanwhile.

    Raises OptionError for a file that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._append("")
        except OSError as error:
            raise OptionError(f"--record {path} cannot be written: {error.strerror}; choose another file") from None

    def add(self, request: ResolvedRequest, rows: Sequence[RowFinished]) -> None:
        """Record the rows of a request, unless it was under control; an error is only logged."""
        if request.billing.control == "on":
            return
        asked = [str(message.get("content")) for message in request.messages if message.get("role") == "user"]
        about = {"model": request.model, "effort": request.effort, "question": asked[-1] if asked else ""}
        lines = []
        for row in rows:
            cut = row.result.finish_reason == "length" or any(d.action == "close" and d.acted for d in row.result.trace)
            texts = {"thinking": row.result.thinking, "answer": row.result.answer, "truncated": cut}
            lines.append(json.dumps({**about, **texts}) + "\n")
        try:
            self._append("".join(lines))
        except OSError as error:
            _log.error("a reply was not recorded: %s", error)

    def _append(self, text: str) -> None:
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="ascii") as file:
            file.write(text)
