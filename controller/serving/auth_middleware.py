"""What every request passes before an endpoint sees it: who calls, by which name, how large the body is; and counting.

Plain ASGI, so that bodies and streams pass through untouched.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import RequestError
from .metrics import Metrics
from .settings import ServerSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = ("/v1/", "/metrics")


class AuthMiddleware:
    """Stands before an application; what it refuses it answers itself."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        counted = scope["path"].startswith("/v1/") and scope["method"] == "POST"
        if not counted:
            await self._pass(scope, receive, send)
            return
        status, began = 500, time.monotonic()

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.begun()
        state = scope.setdefault("state", {})
        try:
            await self._pass(scope, receive, noted)
        finally:
            self.metrics.done(state.get("status", status), time.monotonic() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check_host(headers.get(b"host", b""))
            self._check_key(scope["path"], headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
            self._check_length(headers.get(b"content-length"))
        except RequestError as refusal:
            await send_json(refusal, send)
            return
        await self._limited(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application read no more of a body than is allowed, whatever its headers said."""
        size = 0
        started = False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.settings.limits.body:
                raise _TooLarge
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if started:
                raise
            await send_json(self._too_large(), send)

    def _check_host(self, host: bytes) -> None:
        """Refuse other names than our own where only this machine is meant to reach us: a page might rebind its own."""
        known = self.settings.hosts
        if known is not None and _name(host.decode("latin-1")) not in known:
            raise RequestError(
                f"this server is not called {host.decode('latin-1')!r}; give it a key to serve others", 403
            )

    def _check_key(self, path: str, authorization: bytes, x_api_key: bytes) -> None:
        if self.settings.api_key is None or not path.startswith(GUARDED):
            return
        scheme, _, token = authorization.partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else x_api_key
        if not hmac.compare_digest(given, self.settings.api_key.encode()):
            reason = "no API key was given" if not given else "the API key is wrong"
            raise RequestError(f"{reason}; send it as Authorization: Bearer KEY", 401, code="invalid_api_key")

    def _check_length(self, length: bytes | None) -> None:
        if length is not None and length.isdigit() and int(length) > self.settings.limits.body:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        return RequestError(f"the body is too large; accepted: at most {self.settings.limits.body} bytes", 413)


class _TooLarge(BaseException):
    """The body is larger than allowed; passes through those who turn exceptions into answers."""


async def send_json(refusal: RequestError, send: Send) -> None:
    """Send a refusal."""
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """The name in a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
