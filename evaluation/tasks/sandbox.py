"""A helper process with a deadline for every question: what hangs in it is killed, what crashes it is survived."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...errors import TerselyError

_START = 180.0
"""Seconds to import a library in; long, because it is never the libraries that hang, only a busy machine."""
_END = 10.0


class HelperError(TerselyError, RuntimeError):
    """A helper process cannot be started, or did not answer."""


class AnswerError(HelperError):
    """The function that was asked raised an error."""


class AnswerTimeoutError(HelperError):
    """The helper process did not answer in time and was killed."""


class CrashError(HelperError):
    """The helper process ended without an answer."""


class Closing:
    """What is closed at the end of `with`."""

    def close(self) -> None:
        """End what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SandboxProcess(Closing):
    """A process that answers one question at a time; it starts with the first and is replaced when it is lost.

    An interpreter of its own, not a fork: the caller may have threads, a GPU, or a script without a main guard.
    Threads take turns.
    """

    def __init__(self, library: str) -> None:
        self._library = library
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, function: str, *arguments: Any, seconds: float) -> Any:
        """What a function of `worker.py` returns; raises LateError, CrashError, or AnswerError if it raised."""
        request = json.dumps([function, seconds, *arguments]).encode() + b"\n"
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._exchange(request, seconds)

    def _start(self) -> None:
        self._drop()
        # -P, or modules beside the script would hide installed ones of their name. The hash seed is fixed because
        # some generators go through sets.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("sandbox_main.py")), self._library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"},
        )
        try:
            self._exchange(b"", _START)
        except HelperError as error:
            self._drop()
            name = self._library.replace("_", "-")
            raise HelperError(f"{name} does not start ({error}); reinstall it") from None

    def _exchange(self, request: bytes, seconds: float) -> Any:
        """Send, receive, and kill the process unless all of it is over in time."""
        process, late = self._process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        reply = b""
        try:
            with contextlib.suppress(OSError):  # a broken pipe: it crashed or was killed
                process.stdin.write(request)
                process.stdin.flush()
                reply = process.stdout.readline()
        except BaseException:
            self._drop()  # an interrupt between question and answer would make later answers one too late
            raise
        finally:
            timer.cancel()
            timer.join()  # or it might still kill the process during the next question
        if late.is_set() or not reply.endswith(b"\n"):
            self._drop()
            if late.is_set():
                raise AnswerTimeoutError(f"no answer within {seconds:g} s")
            raise CrashError("its process ended without an answer")
        value, error = json.loads(reply)
        if error is not None:
            raise AnswerError(error)
        return value

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # closing flushes what a dead process cannot take
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the hands of the system; not to be waited for
            process.wait(_END)

    def close(self) -> None:
        """End the process; a later question starts another."""
        with self._lock:
            self._drop()
