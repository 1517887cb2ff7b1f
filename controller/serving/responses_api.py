"""POST /v1/responses: its requests, and its replies as OpenAI's clients expect them. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ..streaming import TextDeltaEvent
from ..text.reasoning_parser import Channel
from . import schemas
from .errors import RequestError
from .replies import Event, RowFinished, control_metadata, sse_event
from .settings import ResolvedRequest


class InputMessage(schemas.StrictModel):
    """A message of the input, or one of an earlier reply sent back."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: schemas.Content
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class ReasoningText(schemas.StrictModel):
    """Text of earlier thinking."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(schemas.StrictModel):
    """Thinking of an earlier reply sent back; it belongs to the message that follows."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    content: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    encrypted_content: None = None
    status: str | None = None


def _item_kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"item {kind}"


Item = Annotated[
    Annotated[InputMessage, Tag("item message")] | Annotated[InputReasoning, Tag("item reasoning")],
    Discriminator(
        _item_kind,
        custom_error_type="unsupported_item",
        custom_error_message="Input should be an item of type 'message' or 'reasoning'",
    ),
]


class Reasoning(schemas.StrictModel):
    """How much to think; there are no summaries, the thinking itself is in the reply."""

    effort: schemas.Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(schemas.StrictModel):
    """The form of the answer."""

    format: schemas.TextFormat | None = None


class ResponsesRequest(schemas.RequestBody):
    """The body of POST /v1/responses."""

    prompt_field = "input"
    limit_fields = ("max_output_tokens",)
    effort_fields = ("tersely.effort", "reasoning.effort")

    input: Annotated[
        Annotated[str, Tag("a text")] | Annotated[list[Item], Field(fail_fast=True, min_length=1), Tag("a list")],
        Discriminator(schemas.by_shape),
        Field(examples=[schemas.EXAMPLE]),
    ]
    instructions: str | None = None
    stream_options: schemas.ObfuscationOptions | None = None
    max_output_tokens: schemas.Tokens | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None

    background: schemas.Never | None = None
    conversation: None = None
    previous_response_id: None = None
    prompt: None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    tools: Annotated[list[schemas.JsonObject], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    truncation: Literal["disabled"] | None = None
    max_tool_calls: int | None = None

    def to_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates expect it."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        thinking = ""
        for item in self.input:
            if isinstance(item, InputReasoning):
                thinking = "".join(part.text for part in item.content or item.summary or ())
                continue
            role = "system" if item.role == "developer" else item.role
            reasoning = {"reasoning_content": thinking} if thinking and role == "assistant" else {}
            messages.append({"role": role, "content": schemas.get_text(item.content), **reasoning})
            thinking = ""
        return messages

    def echo(self) -> dict[str, Any]:
        """The fields of the request that a reply repeats."""
        effort = self.reasoning.effort if self.reasoning else None
        fields = self.model_dump(include={"instructions", "max_output_tokens", "temperature", "top_p", "user"})
        return {**fields, "metadata": self.metadata or {}, "reasoning": {"effort": effort, "summary": None}}


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
            if text or channel == "answer":
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
        if not any(item.channel == "answer" for item in self._items):
            yield from self._open_item("answer")
        yield from self._close_item(_status(row))
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
        last = self._items[-1]
        return {
            **self._frame(status),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [item.to_json(status if item is last else "completed") for item in self._items],
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
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
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "background": False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "usage": None,
            **self.echo,
        }


def _status(row: RowFinished) -> str:
    return "incomplete" if row.finish_reason == "length" else "completed"
