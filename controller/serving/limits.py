"""Limits on connections, request bodies and prompts, before anything parses or tokenizes them whole."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ..text.markers import KNOWN
from .errors import RequestError

HEADER_SECONDS = 20.0  # for the headers of a request to arrive, from the connection or from their first byte on
READ_SECONDS = 60.0  # for a client to take some of what is sent to it, once its buffers are full
MAX_CHUNKS = 10_000
"""Chunks of one request's body, each of which costs the event loop as much time as a kilobyte in one piece."""
GRACE = 5  # seconds for clients to read the rest of their responses once the server ends
MOST = 1024  # connections at once; fewer where the process may open fewer files
_OTHER_FILES = 64
_CHUNK = re.compile(rb"\r\n[0-9A-Fa-f]{1,20}[ \t]*(?:;[^\r\n]*)?\r\n")
"""What begins a chunk; text of JSON has no line like it, but for a number alone in a list."""


def max_connections() -> int:
    """How many clients may be connected at once."""
    try:
        import resource
    except ImportError:  # not on this system
        return MOST
    return max(1, min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))


class GuardedProtocol(AutoHTTPProtocol):
    """Ends connections whose headers do not arrive, whose bodies come in crumbs, or whose client reads nothing.

    Where there are too many, it ends the one that is idle for longest.
    """

    _timer: asyncio.TimerHandle | None = None  # until the headers are there
    _reader: asyncio.TimerHandle | None = None  # until the client has read
    _idle_since = 0.0
    _chunks = 0

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.config.timeout_graceful_shutdown is None:  # as vLLM has it: then a client that stays stops the end
            self.config.timeout_graceful_shutdown = GRACE
        self._wait_for_headers()
        if len(self.connections) > max_connections():
            others = [one for one in self.connections if one is not self and one.idle]
            min(others, key=lambda one: one._idle_since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        cycle, self._chunks = self.cycle, self._chunks + len(_CHUNK.findall(data))
        if self._chunks > MAX_CHUNKS:
            self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is not cycle:
            self._chunks = 0
        if not self.idle or self not in self.connections:  # the latter after an upgrade to a web socket
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reader()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


MAX_VALUES = 20_000  # most values of a JSON body: thousands of messages, but no list that takes seconds to check
MAX_DEPTH = 64
_VALUE_BYTES = 400  # memory that a parsed value may take
_COPIES = 3  # as bytes, parsed and in the messages
RATE = 16 << 20
"""Bytes of memory of large bodies that are begun in a second, of which checking and parsing takes a small part."""
_SMALL = 256 << 10  # bytes of memory of a body that need not wait
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_QUOTES = 8 * MAX_VALUES
_GROWTH = 4  # characters for each token of the limit that are counted first; then as many times more
_CUT = 8  # tokens that a text may have more because it is cut
_ARGUMENTS = ("arguments", "input")  # fields with the arguments of a call, a text or an object of which all is rendered
_TEXTS = ("content", "text", "output", "tool_calls", "function", *_ARGUMENTS)
"""Fields of messages and items that every chat template renders; not names, ids and thinking."""


class BodyTooLarge(BaseException):
    """The body is larger than allowed; no exception handler of the application may catch this."""


@dataclass
class BodyLimits:
    """What bodies may take: `each` bytes for one, `total` bytes for all that are held, `seconds` to arrive."""

    each: int
    total: int
    seconds: float
    held: int = 0
    _free_at: float = 0.0  # by the loop's clock

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count memory that a request takes while it is answered; raises RequestError where it is too much."""
        if self.held and self.held + size > self.total:
            raise RequestError("too much is being answered already; try again", 503, code="busy", retry_after=1)
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    async def take_turn(self, size: int) -> None:
        """Wait until a body that takes `size` bytes of memory may be worked on, which all others have to wait for.

        Large ones together leave most of the time to small ones. Raises RequestError where there are too many.
        """
        if size < _SMALL:
            return
        now = asyncio.get_running_loop().time()
        wait = max(0.0, self._free_at - now)
        if wait > self.seconds:
            raise RequestError("too many large requests are waiting; try again", 503, code="busy", retry_after=1)
        self._free_at = now + wait + size / RATE
        await asyncio.sleep(wait)

    async def read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client left. Raises BodyTooLarge, or RequestError for one that is too slow."""
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self.each:
                        raise BodyTooLarge
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            message_text = f"the request body did not arrive within {self.seconds:g} s"
            raise RequestError(message_text, 408, code="slow_body") from None


def check_shape(body: bytes) -> int:
    """Count the values of a JSON body without parsing it; raises RequestError for too many, or too deep ones.

    Linear in the length, with no memory for each value. What is not JSON is left to the parser.
    """
    if b"\0" in body:  # as in UTF-16, in which quotes cannot be told from others so easily
        raise RequestError("the request body is not valid JSON: it is not UTF-8", code="invalid_json")
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > _QUOTES:
        raise _too_many()
    structure = b"".join(text.split(b'"')[::2])  # without the texts
    values = 1 + sum(map(structure.count, (b",", b":", b"[", b"{")))
    if values > MAX_VALUES:
        raise _too_many()
    depth = 0
    for bracket in structure.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            message = f"the request body is nested too deeply; accepted: at most {MAX_DEPTH} levels"
            raise RequestError(message, code="invalid_json")
    return values


def estimate_memory(size: int, values: int) -> int:
    """About what a body of so many bytes and JSON values takes while it is answered, in bytes."""
    return _COPIES * size + values * _VALUE_BYTES


def replay(body: bytes, receive: Receive) -> Receive:
    """A channel with this body, followed by what else arrives, such as a disconnect."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _too_many() -> RequestError:
    message = f"the request body has too many values; accepted: at most {MAX_VALUES} values, counting names"
    return RequestError(message, 413, code="too_many_values")


class PromptLimit:
    """The longest prompt of a model, in tokens. Threads count the tokens of long texts, one text at a time."""

    def __init__(self, tokenizer: Any, limit: int | None) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self._turn = asyncio.Semaphore()

    async def check(self, messages: Any, rendered: Any, field: str, times: int = 1) -> None:
        """Raise RequestError where messages, and what else is rendered, have more tokens than so many times the limit.

        Both are JSON. Templates add to these texts, so a prompt that passes may still turn out to be too long; the few
        that trim white space would leave less of a prompt that is padded with more of it than the model can read.
        """
        if self.limit is None:
            return
        limit = self.limit * times
        text = "".join((*_list_texts(messages, _TEXTS), *_list_texts(rendered)))
        if len(text) * 4 <= limit or len(text.encode("utf-8", "replace")) <= limit:  # every token has a byte at least
            return
        async with self._turn:
            tokens = await asyncio.to_thread(self._count, text, limit)
        if tokens > limit + _CUT:
            message = f"the prompt has {tokens} tokens or more; accepted: at most {limit}"
            raise RequestError(message, param=field, code="context_length_exceeded")

    def _count(self, text: str, limit: int) -> int:
        """Tokens of a text, or of a beginning of it that is too long already."""
        size, tokens = _GROWTH * limit, 0
        while tokens <= limit + _CUT:
            part = text[:size].encode("utf-8", "replace").decode()  # tokenizers reject lone surrogates
            tokens = len(self.tokenizer(part, add_special_tokens=False)["input_ids"])
            if size >= len(text):
                break
            size *= _GROWTH
        return tokens


def _list_texts(value: Any, names: tuple[str, ...] | None = None, role: str = "", name: str = "") -> Iterator[str]:
    """The texts of a JSON value, or those of its fields with such names, without what templates leave out."""
    if isinstance(value, str):
        text = _drop_thinking(value) if role == "assistant" else value
        yield _compact(text) if name == "arguments" else text
    elif isinstance(value, Mapping) and value.get("type") != "reasoning":
        for key, one in value.items():
            if names is None or key in names:
                inner = None if key in _ARGUMENTS else names
                yield from _list_texts(one, inner, str(value.get("role") or role), key)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _list_texts(one, names, role, name)


def _drop_thinking(text: str) -> str:
    """An earlier reply without its thinking, which templates leave out."""
    for _, close in KNOWN:
        text = text.rpartition(close)[2]
    return text


def _compact(arguments: str) -> str:
    """The arguments of a call, which are parsed and written again."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return arguments
