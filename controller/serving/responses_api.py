"""The replies of POST /v1/responses, whole and streamed, as OpenAI's clients expect them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..streaming import TextDeltaEvent
from ..text.reasoning_parser import Channel
from .errors import RequestError
from .replies import Event, RowFinished, control_metadata, sse_event
from .settings import ResolvedRequest

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass
class _OutputItem:
    """An item of the output; `kind` and `fields` are those of its content."""

    channel: Channel
    index: int
    text: str = ""

    def __post_init__(self) -> None:
        thinks = self.channel == "thinking"
        self.id = f"{'rs' if thinks else 'msg'}_{uuid.uuid4().hex}"
        self.kind = "reasoning_text" if thinks else "output_text"
        self.fields: dict[str, Any] = {} if thinks else {"logprobs": []}

    def to_json(self, status: str) -> dict[str, Any]:
        """The item, with its content once it is complete."""
        thinks = self.channel == "thinking"
        head = {"type": "reasoning", "summary": []} if thinks else {"type": "message", "role": "assistant"}
        content = [] if status == "in_progress" else [self.content(self.text)]
        return {"id": self.id, "status": status, **head, "content": content}

    def content(self, text: str) -> dict[str, Any]:
        """The only piece of content of the item."""
        annotations: dict[str, Any] = {} if self.channel == "thinking" else {"annotations": []}
        return {"type": self.kind, "text": text, **annotations, **self.fields}


@dataclass(slots=True)
class ResponsesReply:
    """One reply; `echo` are the fields of the request that it repeats."""

    request: ResolvedRequest
    echo: dict[str, Any]
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _items: list[_OutputItem] = field(default_factory=list)
    _number: int = -1

    def to_json(self, rows: Sequence[RowFinished]) -> dict[str, Any]:
        """The whole reply; there is one row."""
        texts: dict[Channel, str] = {"thinking": rows[0].result.thinking, "answer": rows[0].content}
        for channel, text in texts.items():
            if text or (channel == "answer" and not rows[0].tool_calls):
                self._items.append(_OutputItem(channel, len(self._items), text))
        return self._response(rows[0])

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The reply as server-sent events."""
        for name in ("created", "in_progress"):
            yield self._event(name, response=self._frame("in_progress"))
        try:
            async for event in events:
                for line in self._finish(event) if isinstance(event, RowFinished) else self._add(event):
                    yield line
        except RequestError as refusal:
            error = refusal.body["error"]
            failure = {"code": error["code"] or "server_error", "message": error["message"]}
            yield self._event("failed", response={**self._frame("failed"), "error": failure})

    def _add(self, event: TextDeltaEvent) -> Iterator[str]:
        if not self._items or self._items[-1].channel != event.channel:
            yield from self._open_item(event.channel)
        item = self._items[-1]
        item.text += event.text
        yield self._event(f"{item.kind}.delta", item, delta=event.text, **item.fields)

    def _finish(self, row: RowFinished) -> Iterator[str]:
        if not row.tool_calls and not any(item.channel == "answer" for item in self._items):
            yield from self._open_item("answer")
        yield from self._close_item(_status(row))
        for index, call in enumerate(_call_items(row), start=len(self._items)):
            place = {"output_index": index, "item_id": call["id"]}
            opened = {**call, "arguments": "", "status": "in_progress"}
            yield self._event("output_item.added", output_index=index, item=opened)
            yield self._event("function_call_arguments.delta", **place, delta=call["arguments"])
            done = {"name": call["name"], "arguments": call["arguments"]}
            yield self._event("function_call_arguments.done", **place, **done)
            yield self._event("output_item.done", output_index=index, item=call)
        yield self._event(_status(row), response=self._response(row))

    def _open_item(self, channel: Channel) -> Iterator[str]:
        yield from self._close_item()
        item = _OutputItem(channel, len(self._items))
        self._items.append(item)
        yield self._event("output_item.added", output_index=item.index, item=item.to_json("in_progress"))
        yield self._event("content_part.added", item, part=item.content(""))

    def _close_item(self, status: str = "completed") -> Iterator[str]:
        for item in self._items[-1:]:
            yield self._event(f"{item.kind}.done", item, text=item.text, **item.fields)
            yield self._event("content_part.done", item, part=item.content(item.text))
            yield self._event("output_item.done", output_index=item.index, item=item.to_json(status))

    def _event(self, name: str, of: _OutputItem | None = None, /, **fields: Any) -> str:
        """An event, which may be one of an item's content."""
        self._number += 1
        place = {} if of is None else {"item_id": of.id, "output_index": of.index, "content_index": 0}
        name = f"response.{name}"
        return sse_event({"type": name, "sequence_number": self._number, **place, **fields}, name)

    def _response(self, row: RowFinished) -> dict[str, Any]:
        status, usage = _status(row), row.result.usage
        output = usage.thinking + usage.answer
        items = [item.to_json("completed") for item in self._items[:-1]]
        items += [item.to_json(status) for item in self._items[-1:]]
        return {
            **self._frame(status),
            "incomplete_details": None if status == "completed" else {"reason": _INCOMPLETE[row.finish_reason]},
            "output": [*items, *_call_items(row)],
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": row.cached, "cache_write_tokens": 0},
                "output_tokens": output,
                "output_tokens_details": {"reasoning_tokens": usage.thinking},
                "total_tokens": usage.prompt + output,
            },
            "tersely": control_metadata(self.request, row),
        }

    def _frame(self, status: str) -> dict[str, Any]:
        """The response without what is known only at the end."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.request.model,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "background": False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "usage": None,
            **self.echo,
        }


def _status(row: RowFinished) -> str:
    return "incomplete" if row.finish_reason in _INCOMPLETE else "completed"


def _call_items(row: RowFinished) -> list[dict[str, Any]]:
    """The tool calls of a row as items of the output; the same ids each time."""
    items = []
    for call in row.tool_calls:
        function = call["function"]
        assert isinstance(function, Mapping)
        item = {"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"], "status": "completed"}
        items.append({**item, "name": function["name"], "arguments": function["arguments"]})
    return items
