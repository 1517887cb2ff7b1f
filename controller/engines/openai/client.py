"""An OpenAI-compatible server over HTTP: its models, its streams of events, and its errors as ours."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import wait
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ....errors import CapabilityError, ModelError, OptionError, did_you_mean
from . import StreamError

if TYPE_CHECKING:
    import aiohttp

KEY_VARIABLE, _OPENAI_KEY = "TERSELY_API_KEY", "OPENAI_API_KEY"
_OPENAI_HOST = "api.openai.com"
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MAX_REPLY, _MAX_ERROR, _MAX_HEADER = 16 << 20, 64 << 10, 64 << 10  # bytes
_MAX_MODELS, _MAX_MESSAGE = 10_000, 300  # names, characters
_MAX_RETRY_AFTER = 60.0  # seconds
_CONNECT_TIMEOUT = 10.0  # seconds
_KEPT = 5.0  # seconds for which an idle connection is kept
_CLOSING = 1.0  # seconds that closing what was left open may take
_REST = 0.05  # seconds that the end of a stream may take
MAX_EVENT = 1 << 20  # bytes of one line, and of the data of one event; those of servers have some hundreds
_LINE_END = re.compile(rb"\r\n|\n|\r")
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # HTTP statuses


class RefusedError(ModelError):
    """The server refuses a request, with this HTTP status."""

    code = "request_refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class OpenAIClient:
    """The server at a base URL, with or without /v1; each event loop that uses it has connections of its own.

    `api_key` is found by `find_key` if it is None, and "" sends none; the server may be silent for `timeout` seconds.
    `key_variable` has the key of such servers: each role has its own, so that none gets the key of another.
    Raises OptionError for anything but a URL, CapabilityError where aiohttp is not installed.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, timeout: float = 120.0, key_variable: str = KEY_VARIABLE
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
        self._key_variable = key_variable
        if self._key and parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise OptionError(
                f"the API key would travel unencrypted to {parts.hostname}; use https://, or a tunnel to this machine",
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
                value = json.loads(await _read(reply, _MAX_REPLY, self.timeout))
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
            async with self._send("POST", path, body) as reply, aclosing(_read_events(reply, self.timeout)) as pieces:
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
            async with asyncio.timeout(self.timeout):  # until the head of the reply is there
                reply = await session.request(
                    method, self.url + path, data=data, allow_redirects=False, proxy=self._proxy
                )
            try:
                if reply.status >= 400:
                    text = (await _read(reply, _MAX_ERROR, self.timeout, cut=True)).decode("utf-8", "replace")
                    raise self._error_from_status(reply.status, path, text, reply.headers.get("retry-after", ""))
                yield reply
            finally:
                if reply.content.at_eof():
                    reply.release()
                else:
                    reply.close()
        except self._aiohttp.ClientError as error:
            raise self._error_from_connection(error) from error

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

    def _error_from_connection(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError) and not isinstance(error, self._aiohttp.ConnectionTimeoutError):
            return self._timed_out()
        return StreamError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def _timed_out(self) -> ModelError:
        return ModelError(
            f"{self.url} timed out after {self.timeout:g} s; raise timeout or check the server", code="server_timeout"
        )

    def _error_from_status(self, status: int, path: str, text: str, retry_after: str = "") -> Exception:
        message = _extract_message(text)
        if status in (401, 403):
            refused = "the API key" if self._key else "a request without an API key"
            return ModelError(
                f"{self.url} refuses {refused} ({status}: {message}); pass api_key, or set {self._key_variable}",
                code="invalid_api_key",
            )
        if status in _TEMPORARY:
            seconds = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 9 else 0.0
            return StreamError(f"{status}: {message}", min(seconds, _MAX_RETRY_AFTER))
        return RefusedError(f"{self.url}{path} refuses the request ({status}: {message})", status)


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


async def _read(reply: aiohttp.ClientResponse, limit: int, seconds: float, cut: bool = False) -> bytes:
    """A body of at most `limit` bytes; a longer or slower one is cut, or a ValueError or TimeoutError."""
    body = bytearray()
    with suppress(TimeoutError) if cut else nullcontext():
        async with asyncio.timeout(seconds):
            async for chunk in _read_raw(reply, seconds):
                body += chunk
                if len(body) > limit:
                    if cut:
                        break
                    raise ValueError(f"more than {limit} bytes")
    return bytes(body[:limit])


async def _read_raw(reply: aiohttp.ClientResponse, seconds: float) -> AsyncGenerator[bytes, None]:
    """The bytes as they were sent: nothing is unpacked, which could be far more than arrives.

    Raises TimeoutError after so many seconds without any.
    """
    if reply.headers.get("content-encoding", "identity").lower() != "identity":
        raise StreamError("the reply is compressed, which was not asked for")
    while True:
        async with asyncio.timeout(seconds):
            chunk = await reply.content.readany()
        if not chunk:
            return
        yield chunk


async def _read_events(reply: aiohttp.ClientResponse, seconds: float) -> AsyncGenerator[str, None]:
    """The data of events; raises TimeoutError for a server that writes nothing but comments for so long."""
    decoder, latest = EventDecoder(), time.monotonic()
    async for chunk in _read_raw(reply, seconds):
        events = decoder.feed(chunk)
        if events:
            latest = time.monotonic()
        elif time.monotonic() - latest > seconds:
            raise TimeoutError
        for data in events:
            yield data
    for data in decoder.finish():
        yield data


async def read_rest(events: AsyncIterator[object]) -> None:
    """Read what follows the last event that matters, if it comes at once: then the connection can be used again."""
    with suppress(TimeoutError, StreamError, ModelError):
        async with asyncio.timeout(_REST):
            async for _ in events:
                pass


class EventDecoder:
    """Splits bytes, however they arrive, into server-sent events (HTML standard, section 9.2), within limits."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that is not over
        self._data: list[bytes] = []
        self._line_size = self._event_size = 0  # of the pieces, and of the lines of the data
        self._after_return = False

    def feed(self, chunk: bytes) -> list[str]:
        """Add bytes and return the data of events that are complete; raises StreamError for one that is too long."""
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if chunk:
            self._after_return = chunk.endswith(b"\r")
        *lines, rest = _LINE_END.split(chunk)
        events = []
        for line in lines:
            events.append(self._take(b"".join([*self._pieces, line])))
            self._pieces.clear()
            self._line_size = 0
        self._pieces.append(rest)
        self._line_size += len(rest)
        if self._line_size + self._event_size > MAX_EVENT:
            raise StreamError(f"an event has more than {MAX_EVENT} bytes")
        return [event for event in events if event is not None]

    def finish(self) -> list[str]:
        """What is left when the stream ends, which some servers do without a blank line."""
        return [event for event in (self._take(b"".join(self._pieces)), self._take(b"")) if event is not None]

    def _take(self, line: bytes) -> str | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._event_size += len(line) + 1
            return None
        data, self._data, self._event_size = self._data, [], 0
        return b"\n".join(data).decode("utf-8", "replace") if data else None


def parse_event(data: str) -> dict[str, Any]:
    """The JSON object of an event; raises StreamError for anything else."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StreamError(f"an event is not valid JSON: {error}") from error
    if not isinstance(event, dict):
        raise StreamError("an event is not a JSON object")
    return event


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


def _extract_message(text: str) -> str:
    """The message of an error reply, of which there are many shapes, on one line that a terminal can show."""
    reply: Any = text
    with suppress(ValueError, RecursionError):
        reply = json.loads(text)
    for key in ("error", "message", "detail"):
        if isinstance(reply, dict):
            reply = reply.get(key) or reply
    shown = (reply if isinstance(reply, str) else text)[: 2 * _MAX_MESSAGE]
    plain = "".join(letter if letter.isprintable() else " " for letter in shown)
    return " ".join(plain.split())[:_MAX_MESSAGE] or "no reason given"
