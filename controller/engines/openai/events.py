"""Server-sent events, split as the HTML standard does (section 9.2), within limits."""

from __future__ import annotations

import json
import re
from typing import Any

from .backend import StreamError

MAX_EVENT = 1 << 20
"""Bytes of one line, and of the data of one event; those of servers have some hundreds."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventDecoder:
    """Turns bytes, however they arrive, into the data of events; only line feeds and carriage returns end a line."""

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
            if (event := self._take(b"".join([*self._pieces, line]))) is not None:
                events.append(event)
            self._pieces.clear()
            self._line_size = 0
        self._pieces.append(rest)
        self._line_size += len(rest)
        if self._line_size + self._event_size > MAX_EVENT:
            raise StreamError(f"an event has more than {MAX_EVENT} bytes")
        return events

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
