"""Control before vLLM's own server: requests are translated on their way in, replies say what was done on theirs out.

Plain ASGI. vLLM makes one `ControlMiddleware` in each of its API servers, from the settings that `tersely serve`
leaves in the
environment; everything that is not for it passes through untouched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..trace import GenerationResult, Usage
from ..vllm.request_control import read_control
from ..vllm.trace_channel import TraceStore
from .auth_middleware import App, AuthMiddleware, Receive, Scope, Send, send_json
from .effort_budgets import CAPS
from .errors import RequestError
from .metrics import Metrics
from .settings import ServerLimits, ServerSettings
from .vllm_replies import ResponseRewriter, RewrittenResponse, Traced
from .vllm_translation import PATHS, VllmRequestMapping, translate

VARIABLE = "TERSELY_SERVE"


class ControlMiddleware:
    """Stands before vLLM's application."""

    def __init__(self, app: App) -> None:
        told = json.loads(os.environ.get(VARIABLE, "{}"))
        self.default = read_control(told.get("default", {}))
        self.caps: Mapping[str, int] = {**CAPS, **told.get("caps", {})}
        self.traces, self.metrics = TraceStore(), Metrics()
        settings = ServerSettings(
            model="",
            limits=ServerLimits(body=told.get("body", ServerLimits().body)),
            api_key=None,  # vLLM looks at keys itself
            hosts=tuple(told["hosts"]) if told.get("hosts") else None,
        )
        self.app, self.guard = app, AuthMiddleware(self._inside, settings, self.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await (self.app if scope["type"] != "http" else self.guard)(scope, receive, send)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/metrics":
            await self.app(scope, receive, ResponseRewriter(send, self._counted).send)
        elif scope["method"] == "POST" and scope["path"] in PATHS:
            await self._controlled(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _controlled(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        tag = self.traces.tag()
        try:
            given = json.loads(body)
            translated = translate(scope["path"], given, self.default, self.caps, tag)
        except RequestError as refusal:
            await send_json(refusal, send)
            return
        except (ValueError, AttributeError, TypeError):  # no JSON, or not of the form: vLLM says so better
            await self.app(scope, _replay(body, receive), send)
            return
        reply = RewrittenResponse(scope["path"], translated, lambda: self.traces.take(tag), self._note)
        text = json.dumps(translated.body).encode()
        sized = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        inner = {**scope, "headers": [*sized, (b"content-length", str(len(text)).encode())]}
        try:
            await self.app(inner, _replay(text, receive), ResponseRewriter(send, reply.whole, reply.event).send)
        finally:
            self.traces.take(tag)  # of a client that left

    def _note(self, translated: VllmRequestMapping, usage: Mapping[str, Any], traces: Traced) -> None:
        """Count a reply."""
        control = translated.control
        details = usage.get("completion_tokens_details") or {}
        completion, thinking = usage.get("completion_tokens") or 0, details.get("reasoning_tokens") or 0
        made = GenerationResult(
            "",
            "",
            "",
            "stop",
            translated.effort if control is None else control.effort,
            Usage(prompt=usage.get("prompt_tokens") or 0, thinking=thinking, answer=max(0, completion - thinking)),
            tuple(decision for trace in traces.values() for decision in trace),
        )
        budget = 0 if control is None or control.thinking is None else control.thinking
        self.metrics.row(made, budget, control is not None and control.shadow)

    def _counted(self, text: bytes) -> bytes:
        """vLLM's metrics, and ours."""
        return text + (self.metrics.text() or "").encode()


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body") or message["type"] == "http.disconnect":
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """What was read, once more; then whatever else comes, such as that the client left."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return waiting.pop() if waiting else await receive()

    return again
