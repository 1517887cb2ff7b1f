"""Limits on request bodies, checked while they arrive and before anything parses them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import Message, Receive

from .errors import RequestError

MAX_VALUES = 20_000
"""Most values of a JSON body: thousands of messages, but no list that takes seconds to check."""
MAX_DEPTH = 64
_VALUE_BYTES = 400
"""Memory that a parsed value may take."""
_COPIES = 3  # as bytes, parsed and in the messages
RATE = 16 << 20
"""Bytes of memory of large bodies that are begun in a second, of which checking and parsing takes a small part."""
_SMALL = 256 << 10
"""Bytes of memory of a body that need not wait."""
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_QUOTES = 8 * MAX_VALUES


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


def memory_of(size: int, values: int) -> int:
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
