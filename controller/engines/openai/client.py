"""An OpenAI-compatible server over HTTP: its models, its streams of events, and its errors as ours."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
import weakref
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import wait
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ....errors import CapabilityError, ModelError, OptionError, did_you_mean
from . import StreamError
from .events import parse_event, read_body, read_events, read_rest

if TYPE_CHECKING:
    import aiohttp

KEY_VARIABLE, _OPENAI_KEY = "TERSELY_API_KEY", "OPENAI_API_KEY"
_OPENAI_HOST = "api.openai.com"
REQUEST_HEADER, REQUEST_ID = "x-request-id", ContextVar("request id", default="")  # of what is being answered
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MAX_REPLY, _MAX_ERROR, _MAX_HEADER = 16 << 20, 64 << 10, 64 << 10  # bytes
_MAX_MODELS, _MAX_MESSAGE = 10_000, 300  # names, characters
_MAX_RETRY_AFTER = 86_400.0  # seconds
_CONNECT_TIMEOUT = 10.0  # seconds
_KEPT = 5.0  # seconds for which an idle connection is kept
_SHORTEST_SECRET = 8  # characters; a shorter text may be any word of an error
_CLOSING = 1.0  # seconds that closing what was left open may take
_TEMPORARY = frozenset({408, 409, 425, 429})  # HTTP statuses, besides those of the server's own trouble
_NOT_IMPLEMENTED = 501


class RefusedError(ModelError, code="request_refused"):
    """The server refuses a request, with this HTTP status.

    `details` are the message, param and code of its reply, without where the server is.
    """

    def __init__(self, message: str, status: int = 0, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.details = status, dict(details or {})


class OpenAIClient:
    """The server at a base URL, with or without /v1; each event loop that uses it has connections of its own.

    `api_key` is found by `find_key` if it is None, and "" sends none; the server may be silent for `timeout` seconds.
    `key_variable` has the key of such servers: each role has its own, so that none gets the key of another. With
    `allow_http` the key may travel unencrypted to another machine.
    Raises OptionError for anything but a URL, CapabilityError where aiohttp is not installed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 120.0,
        key_variable: str = KEY_VARIABLE,
        allow_http: bool = False,
    ) -> None:
        parts = urlsplit(base_url.strip())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise OptionError(
                f"{base_url!r} is not the URL of a server; accepted: for example http://localhost:8000/v1",
                code="invalid_url",
            )
        if parts.username is not None or parts.password is not None:
            raise OptionError(
                f"the URL of {parts.hostname} has a user's name or password; pass a key as api_key", code="invalid_url"
            )
        try:
            import aiohttp
        except ImportError:
            raise CapabilityError(
                "connecting to servers needs aiohttp; pip install 'tersely[serve]'", code="missing_dependency"
            ) from None
        self.url = base_url.strip().rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.timeout = timeout
        self._key = find_key(self.url, key_variable) if api_key is None else api_key
        self._key_source = f"api_key or {KEY_VARIABLE}" if key_variable == KEY_VARIABLE else key_variable
        if self._key and parts.scheme == "http" and parts.hostname not in _LOCAL and not allow_http:
            raise OptionError(
                f"the API key would travel unencrypted to {parts.hostname}; use https://, a tunnel to this machine, or "
                "allow_http = true for this upstream in a server's file, if you trust the network in between",
                code="insecure_key",
            )
        self._aiohttp, self._proxy = aiohttp, find_proxy(self.url)
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        weakref.finalize(self, _drop, self._sessions)

    async def list_models(self) -> dict[str, dict[str, Any]]:
        """The server's models by name; empty if it has no list. Raises ModelError if no server answers."""
        try:
            reply = await self.request("GET", "/models")
        except RefusedError as error:
            if error.status in (404, 405, 501):
                return {}
            raise
        except StreamError as error:
            raise ModelError(
                f"no server answers at {self.url} ({error}); start it, or check the URL", code="server_unreachable"
            ) from error
        cards = reply.get("data")
        cards = cards[:_MAX_MODELS] if isinstance(cards, list) else []
        named = {str(card["id"]): card for card in cards if isinstance(card, dict) and "id" in card}
        return {name: card for name, card in named.items() if name.isprintable()}

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return its reply; raises what `stream_events` does."""
        try:
            async with self._send(method, path, body) as reply:
                value = json.loads(await read_body(reply, _MAX_REPLY, self.timeout))
        except TimeoutError:
            raise self._timed_out() from None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ModelError(
                f"the reply of {self.url}{path} is not a JSON object; check that this is the URL of its API",
                code="invalid_reply",
            )
        return value

    async def stream_events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed reply; closing it closes the connection, which makes the server stop.

        Raises StreamError for a reason that may be temporary, RefusedError for a request that the server will not
        serve, and ModelError for any other trouble.
        """
        try:
            async with self._send("POST", path, body) as reply, aclosing(read_events(reply, self.timeout)) as pieces:
                if reply.content_type == "application/json":  # from a server that does not stream, or an error
                    whole = await read_body(reply, _MAX_REPLY, self.timeout, cut=True)
                    yield self._check_event(parse_event(whole.decode("utf-8", "replace")), path)
                    return
                async for data in pieces:
                    if data.strip() == "[DONE]":
                        with suppress(self._aiohttp.ClientError):  # all that matters has come
                            await read_rest(pieces)
                        return
                    yield self._check_event(parse_event(data), path)
        except TimeoutError:
            raise self._timed_out() from None

    def _check_event(self, event: dict[str, Any], path: str) -> dict[str, Any]:
        """An event that is no error; raises what it says otherwise."""
        if error := event.get("error"):
            status = error.get("code") if isinstance(error, dict) else None
            if not isinstance(status, int) or not 400 <= status < 600:
                status = 500
            raise self._error_from_status(status, path, json.dumps(error))
        return event

    async def close(self) -> None:
        """Close all connections of the event loop that runs."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # for connections that were cut a moment ago

    @asynccontextmanager
    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The reply to a request, whose errors are ours; leaving it before its end closes the connection."""
        data = None
        if body is not None:
            data = BytesIO(json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())
        try:
            session = await self._open()
            name = REQUEST_ID.get()  # one for each request upstream, as servers refuse an id that is in use
            headers = {REQUEST_HEADER: f"{name}-{uuid.uuid4().hex[:8]}"} if name else {}
            async with asyncio.timeout(self.timeout):  # until the head of the reply is there
                reply = await session.request(
                    method, self.url + path, data=data, headers=headers, allow_redirects=False, proxy=self._proxy
                )
            try:
                if reply.status >= 300:
                    text = (await read_body(reply, _MAX_ERROR, self.timeout, cut=True)).decode("utf-8", "replace")
                    raise self._error_from_status(reply.status, path, text, reply.headers.get("retry-after", ""))
                yield reply
            finally:
                if reply.content.at_eof():
                    reply.release()
                else:
                    reply.close()
        except self._aiohttp.ClientError as error:
            if isinstance(error, TimeoutError) and not isinstance(error, self._aiohttp.ConnectionTimeoutError):
                raise self._timed_out() from error
            raise StreamError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error

    async def _open(self) -> aiohttp.ClientSession:
        """The session of the event loop that runs; those of loops that ended are closed."""
        for _ in range(2):  # what the server closed while this loop was busy is noticed, and not used again
            await asyncio.sleep(0)
        for loop in [one for one in self._sessions if one.is_closed()]:
            await self._sessions.pop(loop).close()
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            aiohttp = self._aiohttp
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            self._sessions[loop] = aiohttp.ClientSession(
                headers=headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT),
                timeout=aiohttp.ClientTimeout(connect=min(_CONNECT_TIMEOUT, self.timeout), sock_read=self.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_MAX_HEADER,
                max_field_size=_MAX_HEADER,
            )
        return self._sessions[loop]

    def _timed_out(self) -> ModelError:
        return ModelError(
            f"{self.url} timed out after {self.timeout:g} s; raise timeout or check the server", code="server_timeout"
        )

    def _error_from_status(self, status: int, path: str, text: str, retry_after: str = "") -> Exception:
        details = _extract_details(text)
        for secret in (self.url, urlsplit(self.url).netloc, self._key):
            if secret and len(secret) >= _SHORTEST_SECRET:
                details = {name: value.replace(secret, "...") for name, value in details.items()}
        message = details["message"]
        if status in (401, 403):
            refused = "the API key" if self._key else "a request without an API key"
            return ModelError(
                f"{self.url} refuses {refused} ({status}); check {self._key_source}", code="invalid_api_key"
            )
        if status < 400:
            return ModelError(f"{self.url}{path} is elsewhere (status {status}); correct the URL", code="redirected")
        if status in _TEMPORARY or (status >= 500 and status != _NOT_IMPLEMENTED):
            seconds = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 9 else 0.0
            return StreamError(f"{status}: {message}", min(seconds, _MAX_RETRY_AFTER), status)
        return RefusedError(f"{self.url}{path} refuses the request ({status}: {message})", status, details)


def find_key(url: str, variable: str) -> str | None:
    """The API key of the environment: the variable's, or OpenAI's for its own server and that of OPENAI_BASE_URL."""
    ours, openai = (os.environ.get(name) for name in (variable, _OPENAI_KEY))
    named = urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname
    return ours or (openai if urlsplit(url).hostname in (_OPENAI_HOST, named) else None) or None


def find_proxy(url: str) -> str | None:
    """The proxy that the environment names for a server; raises CapabilityError for one that is not of HTTP."""
    parts = urlsplit(url)
    if parts.hostname in _LOCAL or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or None
    if proxy and urlsplit(proxy).scheme not in ("http", "https"):
        raise CapabilityError(
            f"the environment names a {urlsplit(proxy).scheme!r} proxy for {parts.hostname}; accepted: http and https; "
            "add the host to NO_PROXY to reach it without one",
            code="unsupported_proxy",
        )
    return proxy


def _drop(sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession]) -> None:
    """Close what was left open, at the end of its client or of the program; waits for other threads only."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    for loop, session in sessions.items():
        closing = session.close()
        if loop.is_running():
            closed = asyncio.run_coroutine_threadsafe(closing, loop)
            if loop is not here:
                wait([closed], _CLOSING)
        else:
            with suppress(StopIteration, RuntimeError):
                closing.send(None)  # nothing to wait for, as nothing runs
            closing.close()
    sessions.clear()


async def explain_not_found(client: OpenAIClient, model: str, error: RefusedError) -> ModelError:
    """The error for a request that a server answered with "not found": names the models that there are."""
    listed = await client.list_models()
    if not listed or model in listed:
        return ModelError(f"{error}; check the URL: the server may have another kind of endpoint", code="no_endpoint")
    return ModelError(f"{client.url} has no model {model!r}; {did_you_mean(model, listed)}", code="unknown_model")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a server."""

    name: str
    names: tuple[str, ...]
    context_length: int | None


async def choose_model(client: OpenAIClient, model: str | None) -> ServedModel:
    """The model with a name; None takes the only one, and raises OptionError if there is not exactly one."""
    listed = await client.list_models()
    if model is None:
        if len(listed) != 1:
            problem = f"serves {', '.join(listed)}" if listed else "does not list its models"
            raise OptionError(f"{client.url} {problem}; pass model=", code="ambiguous_model")
        model = next(iter(listed))
    card = listed.get(model, {})
    length, root, meta = card.get("max_model_len"), card.get("root"), card.get("meta")
    if length is None and isinstance(meta, dict):  # llama.cpp's server
        length = meta.get("n_ctx")
    names = (model, root) if isinstance(root, str) else (model,)
    return ServedModel(model, names, length if isinstance(length, int) else None)


def _extract_details(text: str) -> dict[str, Any]:
    """The message, code and param of an error reply, of which there are many shapes."""
    reply: Any = text
    with suppress(ValueError, RecursionError):
        reply = json.loads(text)
    details: dict[str, Any] = {}
    for key in ("error", "message", "detail"):
        if isinstance(reply, dict):
            names = {name: reply.get(name) for name in ("code", "param")}
            details |= {name: _on_one_line(value) for name, value in names.items() if isinstance(value, str)}
            reply = reply.get(key) or reply
    return {**details, "message": _on_one_line(reply if isinstance(reply, str) else text) or "no reason given"}


def _on_one_line(text: str) -> str:
    """A text as a terminal can show it."""
    shown = text[: 2 * _MAX_MESSAGE]
    plain = "".join(letter if letter.isprintable() else " " for letter in shown)
    return " ".join(plain.split())[:_MAX_MESSAGE]
