"""ASGI middleware in front of both servers: paths, API key, Host header, bodies, request counts and log lines."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engines.openai.client import REQUEST_HEADER, REQUEST_ID
from .errors import CLIENT_LEFT, TIMED_OUT, RequestError
from .limits import BodyLimits, BodyTooLarge, check_shape, estimate_memory, replay
from .metrics import Metrics

OPEN_PATHS = ("/health", "/ready", "/ping")  # what needs no key: whether the server is up
METRICS = "/metrics"
_LONGEST_PATH = 200  # characters of a path in the log
_METHODS_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
LOG_FORMATS = ("text", "json", "off")
_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PLAIN = re.compile(r"[!#-~]+")


def get_route(scope: Scope) -> str:
    """The path by which an application finds its route: without the prefix that a proxy is said to add."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def hash_key(key: str) -> str:
    """The digest by which a guard knows a key."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Access:
    """Who may reach what.

    `keys` returns the names of keys by their digests (`hash_key`); without any, no key is asked for. With `hosts`, a
    web page cannot reach a local server under its own name. `paths` are all that is served, None leaves that to the
    application; one that ends in `/*` includes what is below it.
    """

    keys: Callable[[], Mapping[str, str]] = dict
    hosts: Sequence[str] | None = None
    metrics: str = "key"  # one of METRICS_ACCESS
    paths: Sequence[str] | None = None

    def check(self, scope: Scope) -> None:
        """Raise RequestError for a request that may not pass."""
        headers = Headers(scope=scope)
        path = get_route(scope)
        self._check_host(headers)
        if not (path in OPEN_PATHS or (path == METRICS and self.metrics == "open") or _is_preflight(scope, headers)):
            self._check_key(scope, headers)
        if (path == METRICS and self.metrics == "off") or not self._is_served(path):
            raise RequestError(f"{scope.get('method', 'GET')} {scope['path']!r:.200}: not served here", 404)

    def _is_served(self, path: str) -> bool:
        if self.paths is None or path in OPEN_PATHS:
            return True
        return any(path == one or (one.endswith("/*") and path.startswith(one[:-1])) for one in self.paths)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.hosts is not None and name.lower() not in self.hosts:
            raise RequestError(f"Host header {host!r:.200} is not allowed; set --api-key to accept other hosts", 403)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        keys = self.keys()
        if not keys:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = hashlib.sha256(key.encode("latin-1")).hexdigest()
        # Digests have one length and all are compared, so it takes the same time for every key.
        names = [name for digest, name in keys.items() if hmac.compare_digest(given, digest)]
        if not names:
            reason = "the API key is wrong" if key else "the API key is missing"
            raise RequestError(f"{reason}; send it as Authorization: Bearer KEY", 401, code="invalid_api_key")
        scope.setdefault("state", {})["key"] = names[0]


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks for CORS permission, which carries no key and reaches no route."""
    asks = "origin" in headers and "access-control-request-method" in headers
    return scope.get("method") == "OPTIONS" and asks


@dataclass
class AuthMiddleware:
    """Answers what it refuses itself; bodies that are accepted and streams pass through unchanged."""

    app: ASGIApp
    metrics: Metrics
    access: Access
    limits: BodyLimits
    log: str = "off"  # one of LOG_FORMATS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and count a request; see ASGI."""
        if scope["type"] == "websocket":
            await self._pass_websocket(scope, receive, send)
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and get_route(scope).startswith("/v1/"):
            await self._answer_and_count(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer_and_count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, count it and log it under an id, which the reply has as a header."""
        state = scope.setdefault("state", {})
        request_id, start, status = read_request_id(Headers(scope=scope)), time.perf_counter(), 500
        REQUEST_ID.set(request_id)

        async def name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_HEADER] = request_id
            await send(message)

        try:
            with self.metrics.in_flight.track_inprogress(), self.metrics.latency.time():
                status = await self._answer(scope, receive, name)
        finally:
            status = state.get("status", status)
            self.metrics.requests.labels(str(status)).inc()
            path = scope["path"][:_LONGEST_PATH]
            fields = {"method": scope["method"], "path": path, "status": status, "id": request_id}
            fields["seconds"] = round(time.perf_counter() - start, 3)
            fields |= {"key": state["key"]} if state.get("key") else {}
            if status in (CLIENT_LEFT, TIMED_OUT) and "settle" in state and self.log != "off":
                await state["settle"]()
            log_request(self.log, fields | state.get("log", {}))

    async def _pass_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.access.check(scope)
        except RequestError:
            await receive()  # the request to connect; the refusal becomes status 403
            await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Pass a request on, or send its refusal; returns the status."""
        status = None

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self.access.check(scope)
            with ExitStack() as held:
                if scope["method"] not in _METHODS_WITHOUT_BODY:
                    length = Headers(scope=scope).get("content-length", "")
                    if length.isdecimal() and (len(length) > 20 or int(length) > self.limits.each):
                        raise BodyTooLarge
                    body = await self.limits.read(receive)
                    if body is None:
                        return CLIENT_LEFT
                    await self._admit(body, held)
                    receive = replay(body, receive)
                    del body
                await self.app(scope, receive, watch)
        except RequestError as refusal:
            await send_error(refusal, scope, receive, watch)
        except BodyTooLarge:
            message = f"the request body is too large; accepted: at most {self.limits.each} bytes"
            await send_error(RequestError(message, 413), scope, receive, watch)
        return status or 500

    async def _admit(self, body: bytes, held: ExitStack) -> None:
        """Hold a body's memory and wait for its turns to be checked and parsed; raises RequestError."""
        size = estimate_memory(len(body), 0)
        held.enter_context(self.limits.hold(size))
        await self.limits.take_turn(size)
        more = estimate_memory(0, check_shape(body))
        held.enter_context(self.limits.hold(more))
        await self.limits.take_turn(more)


async def send_error(refusal: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a refusal as the response."""
    await JSONResponse(refusal.body, refusal.status, refusal.headers)(scope, receive, send)


def read_request_id(headers: Headers) -> str:
    """The id that a client or a proxy gave a request, if it is plain; else a new one."""
    given = headers.get(REQUEST_HEADER, "")
    return given if _GIVEN.fullmatch(given) else uuid.uuid4().hex


def log_request(style: str, fields: Mapping[str, Any]) -> None:
    """Write one line, never what was asked or answered, to standard error; `style` is one of `LOG_FORMATS`."""
    if style == "off":
        return
    fields = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
    if style == "json":
        line = json.dumps(fields)
    else:
        shown = {name: str(value) for name, value in fields.items()}
        line = " ".join(
            f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}" for name, text in shown.items()
        )
    print(line, file=sys.stderr, flush=True)


class LineHandler(logging.Handler):
    """Logs in lines of the same style, with the id of the request; `off` only leaves out the lines of requests."""

    def __init__(self, style: str) -> None:
        super().__init__(logging.INFO)
        self.style = "text" if style == "off" else style

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; of an error its kind and where it was, as its message may quote a request."""
        try:
            self._write(record)
        except Exception:
            self.handleError(record)

    def _write(self, record: logging.LogRecord) -> None:
        fields = {"level": record.levelname.lower(), "message": record.getMessage()}
        fields |= {"id": REQUEST_ID.get()} if REQUEST_ID.get() else {}
        if record.exc_info and record.exc_info[0] is not None:
            frames = "".join(traceback.format_tb(record.exc_info[2]))
            fields |= {"error": record.exc_info[0].__name__, "traceback": frames}
        log_request(self.style, fields)
