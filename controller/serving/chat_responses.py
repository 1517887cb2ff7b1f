"""Replies of /v1/chat/completions, whole and in pieces. Whatever engine answered, this is their form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..text.tool_calls import read_calls
from ..trace import GenerationResult
from .errors import RequestError
from .pending_response import Event, RowFinished, TextDelta
from .resolved_request import ResolvedRequest

DONE = "data: [DONE]\n\n"


def control_metadata(wish: ResolvedRequest, ended: RowFinished) -> dict[str, Any]:
    """The field `tersely` of a reply: tier, budget, usage by kind, and every decision unless that was not wanted."""
    made = ended.generation
    about = {
        "effort": wish.effort,
        "tier": made.tier,
        "budget": ended.budget,
        "shadow": wish.options.shadow,
        "usage": made.usage.as_dict(),
    }
    return {**about, "decisions": [asdict(d) for d in made.trace]} if wish.trace else about


def openai_finish_reason(made: GenerationResult) -> str:
    """The finish reason in OpenAI's words; how the thinking ended is in the trace."""
    return "length" if made.finish_reason == "length" else "stop"


def openai_usage(rows: Sequence[GenerationResult]) -> dict[str, Any]:
    """Usage in OpenAI's form: what stands in the texts; overhead is in the field `tersely`."""
    prompt = rows[0].usage.prompt
    thinking = sum(made.usage.thinking for made in rows)
    completion = thinking + sum(made.usage.answer for made in rows)
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
    """One reply on its way."""

    wish: ResolvedRequest
    usage_wanted: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, rows: Sequence[RowFinished]) -> dict[str, Any]:
        """The reply in one piece; rows in their order."""
        choices = [
            {
                "index": row.row,
                "message": _message(row.generation, self.wish),
                "finish_reason": "tool_calls"
                if split_tool_calls(row.generation, self.wish)[1]
                else openai_finish_reason(row.generation),
                "logprobs": None,
                "tersely": control_metadata(self.wish, row),
            }
            for row in rows
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": openai_usage([r.generation for r in rows]),
        }

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The reply in server-sent events; a refusal on the way is the last but one."""
        try:
            for row in range(self.wish.n):
                yield self._chunk(row, {"role": "assistant", "content": ""})
            rows: list[GenerationResult] = []
            async for happened in events:
                for chunk in self._chunks(happened):
                    yield chunk
                if isinstance(happened, RowFinished):
                    rows.append(happened.generation)
            if self.usage_wanted:
                yield sse_event({**self._head("chat.completion.chunk"), "choices": [], "usage": openai_usage(rows)})
        except RequestError as refusal:
            yield sse_event(refusal.body)
        yield DONE

    def _chunks(self, happened: Event) -> Iterator[str]:
        if isinstance(happened, TextDelta):
            text = happened.text
            yield self._chunk(happened.row, {"content": text} if happened.part == "answer" else _reasoning(text))
            return
        finish = openai_finish_reason(happened.generation)
        if calls := split_tool_calls(happened.generation, self.wish)[1]:
            yield self._chunk(happened.row, {"tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]})
            finish = "tool_calls"
        yield self._chunk(happened.row, {}, finish, tersely=control_metadata(self.wish, happened))

    def _chunk(self, row: int, delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": row, "delta": delta, "finish_reason": finish, "logprobs": None, **more}
        usage = {"usage": None} if self.usage_wanted else {}
        return sse_event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.wish.model}


def split_tool_calls(made: GenerationResult, wish: ResolvedRequest) -> tuple[str, list[dict[str, Any]]]:
    """What an answer says, and the calls of tools in it in OpenAI's form; what is no call stays text."""
    if not wish.options.tools:
        return made.answer, []
    said, calls = read_calls(made.answer)
    for call in (call for call in calls if call.error is not None):
        said = f"{said}\n{call.text}".strip()
    functions = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for call in calls
        if call.error is None
    ]
    return said, functions


def _message(made: GenerationResult, wish: ResolvedRequest) -> dict[str, Any]:
    said, calls = split_tool_calls(made, wish)
    told = {"tool_calls": calls, "content": said or None} if calls else {"content": said}
    return {"role": "assistant", **told, **_reasoning(made.thinking)}


def _reasoning(text: str) -> dict[str, str | None]:
    """Thinking under both names that clients look for."""
    return {"reasoning": text or None, "reasoning_content": text or None}
