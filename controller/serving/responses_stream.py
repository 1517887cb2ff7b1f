"""Replies of /v1/responses, whole and as the events that OpenAI's clients put together."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..text.reasoning_parser import Channel
from ..trace import GenerationResult
from .chat_responses import control_metadata, openai_finish_reason, sse_event
from .errors import RequestError
from .pending_response import Event, RowFinished, TextDelta
from .resolved_request import ResolvedRequest

_KINDS: dict[Channel, tuple[str, str]] = {
    "thinking": ("reasoning", "reasoning_text"),
    "answer": ("message", "output_text"),
}


@dataclass(slots=True)
class _Item:
    """One item of the output; place: which it is."""

    part: Channel
    place: int
    text: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        self.id = f"{'rs' if self.part == 'thinking' else 'msg'}_{uuid.uuid4().hex}"

    def form(self, status: str) -> dict[str, Any]:
        """The item as JSON, its content once it is complete."""
        kind, _ = _KINDS[self.part]
        content = [] if status == "in_progress" else [self.content()]
        more: dict[str, Any] = {"summary": []} if self.part == "thinking" else {"role": "assistant"}
        return {"id": self.id, "type": kind, "status": status, **more, "content": content}

    def content(self, text: str | None = None) -> dict[str, Any]:
        """Its only piece of content."""
        more: dict[str, Any] = {} if self.part == "thinking" else {"annotations": [], "logprobs": []}
        return {"type": _KINDS[self.part][1], "text": self.text if text is None else text, **more}


@dataclass(slots=True)
class ResponseReply:
    """One reply on its way; echo: fields of the request that are given back."""

    wish: ResolvedRequest
    echo: dict[str, Any]
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = -1

    def whole(self, rows: Sequence[RowFinished]) -> dict[str, Any]:
        """The reply in one piece; there is one row."""
        made = rows[0].generation
        texts: list[tuple[Channel, str]] = [("thinking", made.thinking), ("answer", made.answer)]
        present = [(part, text) for part, text in texts if text or part == "answer"]
        return self._response(rows[0], [_Item(part, place, text) for place, (part, text) in enumerate(present)])

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The reply in server-sent events."""
        yield self._event("response.created", response=self._frame("in_progress"))
        yield self._event("response.in_progress", response=self._frame("in_progress"))
        items: list[_Item] = []
        try:
            async for happened in events:
                if isinstance(happened, TextDelta):
                    for line in self._piece(items, happened):
                        yield line
                else:
                    for line in self._end(items, happened):
                        yield line
        except RequestError as refusal:
            error = refusal.body["error"]
            failed = {"code": error["code"] or "server_error", "message": error["message"]}
            yield self._event("response.failed", response={**self._frame("failed"), "error": failed})

    def _piece(self, items: list[_Item], piece: TextDelta) -> Iterator[str]:
        if not items or items[-1].part != piece.part:
            yield from self._done(items)
            yield from self._begun(items, piece.part)
        item = items[-1]
        item.text += piece.text
        more: dict[str, Any] = {} if item.part == "thinking" else {"logprobs": []}
        yield self._of(item, f"response.{_KINDS[item.part][1]}.delta", delta=piece.text, **more)

    def _end(self, items: list[_Item], ended: RowFinished) -> Iterator[str]:
        status = _status(ended.generation)
        if not any(item.part == "answer" for item in items):
            yield from self._done(items)
            yield from self._begun(items, "answer")
        yield from self._done(items, status)
        yield self._event(f"response.{status}", response=self._response(ended, items))

    def _begun(self, items: list[_Item], part: Channel) -> Iterator[str]:
        item = _Item(part, len(items))
        items.append(item)
        yield self._event("response.output_item.added", output_index=item.place, item=item.form("in_progress"))
        yield self._of(item, "response.content_part.added", part=item.content(""))

    def _done(self, items: list[_Item], status: str = "completed") -> Iterator[str]:
        """Close the last item."""
        if not items:
            return
        item = items[-1]
        more: dict[str, Any] = {} if item.part == "thinking" else {"logprobs": []}
        yield self._of(item, f"response.{_KINDS[item.part][1]}.done", text=item.text, **more)
        yield self._of(item, "response.content_part.done", part=item.content())
        yield self._event("response.output_item.done", output_index=item.place, item=item.form(status))

    def _of(self, item: _Item, name: str, **more: Any) -> str:
        return self._event(name, item_id=item.id, output_index=item.place, content_index=0, **more)

    def _event(self, name: str, **more: Any) -> str:
        self._number += 1
        return sse_event({"type": name, "sequence_number": self._number, **more}, name)

    def _response(self, ended: RowFinished, items: Sequence[_Item]) -> dict[str, Any]:
        made, status = ended.generation, _status(ended.generation)
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        last = items[-1]
        usage = made.usage
        written = usage.thinking + usage.answer
        return {
            **self._frame(status),
            "incomplete_details": cut,
            "output": [item.form(status if item is last else "completed") for item in items],
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": usage.thinking},
                "total_tokens": usage.prompt + written,
            },
            "tersely": control_metadata(self.wish, ended),
        }

    def _frame(self, status: str) -> dict[str, Any]:
        """The response without what is known only in the end."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.wish.model,
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


def _status(made: GenerationResult) -> str:
    return "incomplete" if openai_finish_reason(made) == "length" else "completed"
