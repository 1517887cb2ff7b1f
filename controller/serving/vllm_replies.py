"""Replies of vLLM's server with what tersely adds: reasoning under both of its names, and what was done and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

from ..trace import Decision
from .auth_middleware import Send
from .vllm_translation import CHAT, COMPLETIONS, MESSAGES, RESPONSES, VllmRequestMapping

Traced = Mapping[int, tuple[Decision, ...]]
"""The decisions of each sample of a prompt."""
_END = b"\n\n"


class ResponseRewriter:
    """Passes a response on, rewritten: a whole JSON body by `whole`, a stream event by event; others untouched.

    Either may return None for what is to be left out, and only responses that went well are looked at.
    """

    def __init__(
        self, send: Send, whole: Callable[[bytes], bytes], event: Callable[[bytes], bytes | None] | None = None
    ) -> None:
        self._send, self._whole, self._event = send, whole, event
        self._start: MutableMapping[str, Any] | None = None
        self._mode = "through"
        self._held = b""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Take the next message of the application."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body" or self._mode == "through":
            await self._send(message)
        elif self._mode == "stream":
            await self._stream(message)
        else:
            await self._collect(message)

    async def _begin(self, message: MutableMapping[str, Any]) -> None:
        headers = {name.lower(): value for name, value in message["headers"]}
        kind = headers.get(b"content-type", b"")
        if message["status"] == 200 and kind.startswith(b"text/event-stream") and self._event is not None:
            self._mode = "stream"
        elif message["status"] == 200 and kind.startswith((b"application/json", b"text/plain")):
            self._mode, self._start = "whole", message
            return
        await self._send(message)

    async def _stream(self, message: MutableMapping[str, Any]) -> None:
        assert self._event is not None
        *events, self._held = (self._held + message.get("body", b"")).split(_END)
        made = [new + _END for event in events if (new := self._event(event)) is not None]
        if not message.get("more_body"):
            made.append(self._held)
        if (body := b"".join(made)) or not message.get("more_body"):
            await self._send({**message, "body": body})

    async def _collect(self, message: MutableMapping[str, Any]) -> None:
        self._held += message.get("body", b"")
        if message.get("more_body"):
            return
        assert self._start is not None
        body = self._whole(self._held)
        headers = [(n, v) for n, v in self._start["headers"] if n.lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({**message, "body": body})


class RewrittenResponse:
    """The reply to one request; `note` is told its usage and traces once."""

    def __init__(
        self,
        path: str,
        asked: VllmRequestMapping,
        take: Callable[[], Traced],
        note: Callable[[VllmRequestMapping, Mapping[str, Any], Traced], None],
    ) -> None:
        self.path, self.asked, self._take, self._note = path, asked, take, note
        self._traces: dict[int, tuple[Decision, ...]] = {}

    def whole(self, body: bytes) -> bytes:
        """A reply in one piece."""
        reply = json.loads(body)
        self._look()
        if self.path in (CHAT, COMPLETIONS):
            for choice in reply.get("choices", ()):
                _both_names(choice.get("message"))
                choice["tersely"] = self._told(choice.get("index", 0))
        else:
            reply["tersely"] = self._told(0)
        self._note(self.asked, _usage(reply), self._traces)
        return json.dumps(reply, ensure_ascii=False).encode()

    def event(self, event: bytes) -> bytes | None:
        """An event of a stream; None for one that the client did not ask for."""
        head, found, data = event.rpartition(b"data: ")
        if not found or not data.startswith(b"{"):
            return event
        piece = json.loads(data)
        if self.path in (CHAT, COMPLETIONS):
            if piece.get("usage") and not piece.get("choices"):
                self._look()
                self._note(self.asked, piece["usage"], self._traces)
                return None if self.asked.usage_added else event
            for choice in piece.get("choices", ()):
                _both_names(choice.get("delta"))
                if choice.get("finish_reason") is not None:
                    self._look()
                    choice["tersely"] = self._told(choice.get("index", 0))
        elif not self._at_the_end(piece):
            return event
        return head + found + json.dumps(piece, ensure_ascii=False, separators=(",", ":")).encode()

    def _at_the_end(self, piece: dict[str, Any]) -> bool:
        """Add to the last event of other streams; whether this is it."""
        if self.path == RESPONSES and piece.get("type") in ("response.completed", "response.incomplete"):
            place = piece["response"]
        elif self.path == MESSAGES and piece.get("type") == "message_delta":
            place = piece
        else:
            return False
        self._look()
        place["tersely"] = self._told(0)
        self._note(self.asked, _usage(place), self._traces)
        return True

    def _look(self) -> None:
        self._traces.update(self._take())

    def _told(self, index: int) -> dict[str, Any]:
        control = self.asked.control
        about = {
            "effort": self.asked.effort,
            "tier": "none" if control is None else control.effort,
            "budget": None if control is None else control.thinking,
            "shadow": control is not None and control.shadow,
        }
        decisions = [asdict(decision) for decision in self._traces.get(index, ())]
        return {**about, "decisions": decisions} if self.asked.trace else about


def _both_names(message: Any) -> None:
    """Give reasoning the name by which other servers call it as well."""
    if isinstance(message, dict) and message.get("reasoning") is not None:
        message.setdefault("reasoning_content", message["reasoning"])


def _usage(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Usage by the names of chat completions."""
    usage = reply.get("usage") or {}
    if "input_tokens" not in usage:
        return usage
    details = usage.get("output_tokens_details") or {}
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage.get("output_tokens", 0),
        "completion_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
    }
