"""Replies of /v1/chat/completions, whole and streamed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..trace import GenerationResult
from .errors import RequestError
from .pending_response import Event, RowFinished
from .settings import ResolvedRequest


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


def openai_usage(results: Sequence[GenerationResult]) -> dict[str, Any]:
    """Usage in OpenAI's form: tokens of the texts; overhead is in the field `tersely`."""
    prompt = results[0].usage.prompt
    thinking = sum(result.usage.thinking for result in results)
    completion = thinking + sum(result.usage.answer for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }


def sse_event(data: Mapping[str, Any], name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


@dataclass(slots=True)
class ChatReply:
    """One reply; `include_usage`: a stream ends with the usage."""

    request: ResolvedRequest
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def to_json(self, rows: Sequence[RowFinished]) -> dict[str, Any]:
        """The whole reply; `rows` in their order."""
        choices = [
            {
                "index": row.row,
                "message": _message(row),
                "finish_reason": row.finish_reason,
                "logprobs": None,
                "tersely": control_metadata(self.request, row),
            }
            for row in rows
        ]
        usage = openai_usage([row.result for row in rows])
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The reply as server-sent events; an error ends it with an event of its own."""
        try:
            for row in range(self.request.n):
                yield self._chunk(row, {"role": "assistant", "content": ""})
            results: list[GenerationResult] = []
            async for event in events:
                for chunk in self._chunks(event):
                    yield chunk
                if isinstance(event, RowFinished):
                    results.append(event.result)
            if self.include_usage:
                yield sse_event({**self._head("chat.completion.chunk"), "choices": [], "usage": openai_usage(results)})
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
        yield self._chunk(event.row, {}, event.finish_reason, tersely=control_metadata(self.request, event))

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
