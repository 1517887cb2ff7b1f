"""ASGI middleware in front of both servers: API key, Host header, size of the body, and request counting."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError
from .metrics import Metrics

_PROTECTED = ("/v1/", "/metrics")


@dataclass
class AuthMiddleware:
    """Answers what it refuses itself; bodies and streams pass through untouched.

    A body has at most `max_body` bytes, whatever headers claim. The key is required below `/v1/` and for `/metrics`.
    With `hosts`, a web page cannot reach a local server under its own name.
    """

    app: ASGIApp
    metrics: Metrics
    max_body: int
    api_key: str | None = None
    hosts: Sequence[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and count an HTTP request; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"].startswith("/v1/"):
            state = scope.setdefault("state", {})
            status = 500
            with self.metrics.in_flight.track_inprogress(), self.metrics.latency.time():
                try:
                    status = await self._answer(scope, receive, send)
                finally:
                    self.metrics.requests.labels(str(state.get("status", status))).inc()
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Pass a request on, or send its refusal; returns the status."""
        size, status = 0, None

        async def measure() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise _BodyTooLarge
            return message

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_headers(scope["path"], headers)
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > self.max_body:
                raise _BodyTooLarge
            await self.app(scope, measure, watch)
        except RequestError as refusal:
            await send_error(refusal, scope, receive, watch)
        except _BodyTooLarge:
            if status is not None:
                raise
            message = f"the request body is too large; accepted: at most {self.max_body} bytes"
            await send_error(RequestError(message, 413), scope, receive, watch)
        return status or 500

    def _check_headers(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.hosts is not None and name.lower() not in self.hosts:
            raise RequestError(f"Host header {host!r} is not allowed; set --api-key to accept other hosts", 403)
        if self.api_key is None or not path.startswith(_PROTECTED):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(key.encode("latin-1"), self.api_key.encode()):
            reason = "the API key is wrong" if key else "the API key is missing"
            raise RequestError(f"{reason}; send it as Authorization: Bearer KEY", 401, code="invalid_api_key")


class _BodyTooLarge(BaseException):
    """The body is larger than allowed; no exception handler of the application may catch this."""


async def send_error(refusal: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a refusal as the response."""
    await JSONResponse(refusal.body, refusal.status, refusal.headers)(scope, receive, send)
