"""vLLM's processes: how decisions come back from workers, as datagrams on a socket, and how all of them end.

vLLM hands nothing back per request but tokens. A process that wants traces opens a `TraceStore` before vLLM starts its
own processes, which find its folder in their environment, and gives its requests tags from it. A decision is in the
socket before the token that follows it leaves the worker, so `take` finds all of them without waiting.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from ..trace import Decision
from .request_control import KEY

PLACE = "TERSELY_TRACES"
"""The variable that names the folder of sockets; each process that wants traces has one there, named in its tags."""
_NAME = re.compile(r"\d+-\d+")
_NUMBERS = count()
_MOST = 65_536  # requests whose traces are kept until they are taken
_PATIENCE = 0.1
"""Seconds that a worker waits where the queue of the socket is full: Linux lets ten datagrams wait by default."""
_REST = 1.0  # seconds after such a wait in which no row of the worker waits


def request_tag(extra_args: Mapping[str, Any] | None) -> str:
    """The tag in a request's control, or ""."""
    given = (extra_args or {}).get(KEY)
    if isinstance(given, str) and given.lstrip()[:1] == "{":
        given = json.loads(given)
    return str(given.get("tag", "")) if isinstance(given, dict) else ""


def send_trace(tag: str, copy: int, decisions: Sequence[Decision], sent: int = 0) -> int:
    """Send the decisions of a request but the first `sent`; return how many need not be sent again.

    `copy` is the number of the sample among those of one prompt, from 0.
    """
    name = tag.partition(".")[0]
    sender = _sender(name)
    for number in range(sent, len(decisions)):
        if sender is None:
            break
        message = {"tag": tag, "copy": copy, "number": number, "decision": asdict(decisions[number])}
        sender.settimeout(0.0 if time.monotonic() < _SLOW.get(name, 0.0) else _PATIENCE)
        try:
            sender.send(json.dumps(message).encode())
        except TimeoutError:  # the listener is slow: the rest is sent with the next token
            _SLOW[name] = time.monotonic() + _REST
            return number
        except BlockingIOError:
            return number
        except ConnectionError:  # it is gone
            _hang_up(name)
            break
        except OSError:  # too long for a datagram: this one is lost
            continue
    return len(decisions)


_SENDERS: dict[str, socket.socket] = {}
_SLOW: dict[str, float] = {}  # until when no row waits for a listener


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
    """Receives the traces that workers send, until it is closed."""

    def __init__(self) -> None:
        self._folder = None if PLACE in os.environ else tempfile.TemporaryDirectory(prefix="tersely-")
        if self._folder is not None:
            os.environ[PLACE] = self._folder.name
        self._name = f"{os.getpid()}-{next(_NUMBERS)}"
        self._place = Path(os.environ[PLACE]) / self._name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.setblocking(False)  # whatever `socket.setdefaulttimeout` says
        self._socket.bind(str(self._place))
        self._found: dict[str, dict[int, dict[int, Decision]]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._tags = count()
        self._thread = threading.Thread(target=self._listen, name="tersely-traces", daemon=True)
        self._thread.start()

    def tag(self) -> str:
        """A tag for one more request."""
        return f"{self._name}.{next(self._tags)}"

    def take(self, tag: str) -> dict[int, tuple[Decision, ...]]:
        """Remove and return the decisions of a finished request, by sample."""
        with self._lock:
            self._receive()
            found = self._found.pop(tag, {})
        return {copy: tuple(made[number] for number in sorted(made)) for copy, made in found.items()}

    def close(self) -> None:
        """Stop listening."""
        _hang_up(self._name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            self._closed = True
            last.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # a full queue wakes the thread too
                last.sendto(b"", str(self._place))
        self._thread.join()
        self._socket.close()
        self._place.unlink(missing_ok=True)
        if self._folder is not None:
            os.environ.pop(PLACE, None)
            self._folder.cleanup()

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not self._closed:
            poll.poll()
            with self._lock:
                self._receive()

    def _receive(self) -> None:
        """Store what waits in the socket; the lock is held."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._store(self._socket.recv(1 << 20))

    def _store(self, message: bytes) -> None:
        try:
            sent = json.loads(message)
            tag, copy, number, decision = sent["tag"], sent["copy"], sent["number"], Decision(**sent["decision"])
        except (ValueError, TypeError, KeyError):  # not one of ours
            return
        self._found.setdefault(tag, {}).setdefault(copy, {})[number] = decision
        while len(self._found) > _MOST:
            self._found.pop(next(iter(self._found)))


SERVED = "TERSELY_SERVE"  # the variable by which the processes of `tersely serve --engine vllm` know that they are
_EVERY = 1.0  # seconds between two looks


def end_with_parent() -> None:
    """Watch the parent of a process that a server has started; does nothing elsewhere."""
    if SERVED in os.environ and multiprocessing.parent_process() is not None:
        threading.Thread(target=_watch, args=(os.getppid(),), name="tersely-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY)
    if (folder := os.environ.get(PLACE)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # what this process has on a device or in shared memory, the system takes back


class ServerLifetime:
    """What happened to the server in this process since it started."""

    def __init__(self) -> None:
        self._started = self._stopped = False

    def start(self, reload: Callable[[], object] | None = None) -> None:
        """Note signals as well from now on; vLLM's event loop, which gets them by another way, still acts on them.

        SIGHUP calls `reload`.
        """
        self._started = True
        if reload is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    @property
    def died(self) -> bool:
        """Whether the server, which has ended, ended without a signal: vLLM ends it only where its engine is lost."""
        return self._started and not self._stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True


LIFETIME = ServerLifetime()
