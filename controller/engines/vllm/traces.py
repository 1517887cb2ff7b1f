"""How decisions come back from vLLM's workers: as datagrams on a socket of the process that asked.

vLLM hands nothing back per request but tokens. Whoever wants traces opens a `Traces` before vLLM starts its processes,
which find it in their environment; without one nothing is sent. Nobody ever waits for a datagram.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ...trace import Decision
from .control import KEY

PLACE = "TERSELY_TRACES"
_MOST = 65_536
"""Requests whose traces are kept for somebody to take."""


def tag_of(extra_args: Mapping[str, Any] | None) -> str:
    """What a request is told apart by, "" where it has nothing."""
    given = (extra_args or {}).get(KEY)
    if isinstance(given, str) and given.lstrip()[:1] == "{":
        given = json.loads(given)
    return str(given.get("tag", "")) if isinstance(given, dict) else ""


def tell(tag: str, copy: int, decisions: Sequence[Decision], told: int = 0) -> int:
    """Send the decisions of a request beyond the first `told`; how many have been sent now.

    copy: which of the samples of one prompt, counted from 0.
    """
    place = os.environ.get(PLACE)
    for number in range(told, len(decisions)):
        if place is None or not tag:
            break
        about = {"tag": tag, "copy": copy, "number": number, "decision": asdict(decisions[number])}
        # Where nobody listens any more, or not fast enough, decisions are lost and nothing else.
        with contextlib.suppress(OSError):
            _sender(place).send(json.dumps(about).encode())
    return len(decisions)


_SENDERS: dict[str, socket.socket] = {}


def _sender(place: str) -> socket.socket:
    if place not in _SENDERS:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.connect(place)
        _SENDERS[place] = made
    return _SENDERS[place]


@atexit.register
def _hang_up(place: str | None = None) -> None:
    """Close the sender to a place, or all."""
    for known in list(_SENDERS) if place is None else [place]:
        if (found := _SENDERS.pop(known, None)) is not None:
            found.close()


class Traces:
    """Takes in what workers send, from when it is opened; to be closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tersely-")
        self.place = str(Path(self._folder.name) / "traces")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(self.place)
        self._found: dict[str, dict[int, dict[int, Decision]]] = {}
        self._lock = threading.Lock()
        os.environ[PLACE] = self.place
        self._thread = threading.Thread(target=self._listen, name="tersely-traces", daemon=True)
        self._thread.start()

    def take(self, tag: str) -> dict[int, tuple[Decision, ...]]:
        """The decisions of a request that has ended, of each of its samples, in order; they are then forgotten."""
        with self._lock:
            found = self._found.pop(tag, {})
        return {copy: tuple(made[number] for number in sorted(made)) for copy, made in found.items()}

    def close(self) -> None:
        """Stop listening."""
        if os.environ.get(PLACE) == self.place:
            del os.environ[PLACE]
        _hang_up(self.place)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.place)
        self._thread.join()
        self._socket.close()
        self._folder.cleanup()

    def __enter__(self) -> Traces:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _listen(self) -> None:
        while message := self._socket.recv(1 << 20):
            try:
                told = json.loads(message)
                decision = Decision(**told["decision"])
            except (ValueError, TypeError, KeyError):  # not one of ours
                continue
            with self._lock:
                self._found.setdefault(told["tag"], {}).setdefault(told["copy"], {})[told["number"]] = decision
                while len(self._found) > _MOST:
                    self._found.pop(next(iter(self._found)))
