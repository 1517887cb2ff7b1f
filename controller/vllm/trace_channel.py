"""How decisions come back from vLLM's workers: as datagrams on a socket of the process that asked.

vLLM hands nothing back per request but tokens. Whoever wants traces opens a `TraceStore` before vLLM starts its
processes,
which find its folder in their environment, and gives its requests tags of it; without that nothing is sent. Nobody ever
waits for a datagram.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from ..trace import Decision
from .request_control import KEY

PLACE = "TERSELY_TRACES"
"""The variable that names the folder of sockets; each process that wants traces has one there, named in its tags."""
_NAME = re.compile(r"\d+-\d+")
_NUMBERS = count()
_MOST = 65_536
"""Requests whose traces are kept for somebody to take."""


def request_tag(extra_args: Mapping[str, Any] | None) -> str:
    """What a request is told apart by, "" where it has nothing."""
    given = (extra_args or {}).get(KEY)
    if isinstance(given, str) and given.lstrip()[:1] == "{":
        given = json.loads(given)
    return str(given.get("tag", "")) if isinstance(given, dict) else ""


def send_trace(tag: str, copy: int, decisions: Sequence[Decision], told: int = 0) -> int:
    """Send the decisions of a request beyond the first `told`; how many have been sent now.

    copy: which of the samples of one prompt, counted from 0.
    """
    sender = _sender(tag.partition(".")[0])
    for number in range(told, len(decisions)):
        if sender is None:
            break
        about = {"tag": tag, "copy": copy, "number": number, "decision": asdict(decisions[number])}
        # Where nobody listens fast enough, decisions are lost and nothing else.
        with contextlib.suppress(OSError):
            sender.send(json.dumps(about).encode())
    return len(decisions)


_SENDERS: dict[str, socket.socket] = {}


def _sender(name: str) -> socket.socket | None:
    """A socket that sends to a listener; None if there is none of that name."""
    folder = os.environ.get(PLACE)
    if name not in _SENDERS and folder is not None and _NAME.fullmatch(name):
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        try:
            made.connect(str(Path(folder) / name))
        except OSError:
            made.close()
            return None
        _SENDERS[name] = made
    return _SENDERS.get(name)


@atexit.register
def _hang_up(name: str | None = None) -> None:
    """Close the sender to a listener, or all."""
    for known in list(_SENDERS) if name is None else [name]:
        if (found := _SENDERS.pop(known, None)) is not None:
            found.close()


class TraceStore:
    """Takes in what workers send, from when it is opened; to be closed."""

    def __init__(self) -> None:
        self._folder = None if PLACE in os.environ else tempfile.TemporaryDirectory(prefix="tersely-")
        if self._folder is not None:
            os.environ[PLACE] = self._folder.name
        self._name = f"{os.getpid()}-{next(_NUMBERS)}"
        self._place = Path(os.environ[PLACE]) / self._name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(str(self._place))
        self._found: dict[str, dict[int, dict[int, Decision]]] = {}
        self._lock = threading.Lock()
        self._tags = count()
        self._thread = threading.Thread(target=self._listen, name="tersely-traces", daemon=True)
        self._thread.start()

    def tag(self) -> str:
        """A tag for one more request."""
        return f"{self._name}.{next(self._tags)}"

    def take(self, tag: str) -> dict[int, tuple[Decision, ...]]:
        """The decisions of a request that has ended, of each of its samples, in order; they are then forgotten."""
        with self._lock:
            found = self._found.pop(tag, {})
        return {copy: tuple(made[number] for number in sorted(made)) for copy, made in found.items()}

    def close(self) -> None:
        """Stop listening."""
        _hang_up(self._name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self._place))
        self._thread.join()
        self._socket.close()
        self._place.unlink(missing_ok=True)
        if self._folder is not None:
            os.environ.pop(PLACE, None)
            self._folder.cleanup()

    def _listen(self) -> None:
        while message := self._socket.recv(1 << 20):
            try:
                told = json.loads(message)
                tag, copy, number, decision = told["tag"], told["copy"], told["number"], Decision(**told["decision"])
            except (ValueError, TypeError, KeyError):  # not one of ours
                continue
            with self._lock:
                self._found.setdefault(tag, {}).setdefault(copy, {})[number] = decision
                while len(self._found) > _MOST:
                    self._found.pop(next(iter(self._found)))
