"""A sandbox process with a deadline for every call: a call that hangs is killed, and a crash is survived.

The process kills the fork of itself that grades; starting another takes a few hundredths of a second. Only if it does
not reply for some seconds longer, it is killed as well, and the next call has to import its library again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from ...errors import TerselyError

_START_SECONDS = 180.0  # time to import a library; generous, because imports never hang, but the machine may be busy
GRACE = 5.0
"""Seconds after a deadline within which a call ends even if the machine stalls; otherwise it takes hundredths."""
_END_SECONDS = 1.0
_KEPT_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "SYSTEMROOT")
"""What an interpreter needs to find its libraries; the process forgets these too, once they are imported."""
_ENVIRONMENT = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}


class SandboxError(TerselyError, RuntimeError, code="sandbox_failed"):
    """A sandbox process cannot be started, or did not answer."""


class CallError(SandboxError, code="sandbox_call_failed"):
    """The called function raised an error."""


class DeadlineError(SandboxError, code="sandbox_timeout"):
    """The call was not answered in time, and what computed it was killed."""


class CrashError(SandboxError, code="sandbox_crashed"):
    """The sandbox process ended without an answer."""


class Closing:
    """Base of context managers that close themselves at the end of `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SandboxProcess(Closing):
    """A new interpreter that executes one call at a time; starts with the first call, and is replaced when lost."""

    def __init__(self, library: str) -> None:
        self._library = library
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def call(self, function: str, *arguments: Any, seconds: float) -> Any:
        """Call a function of `sandbox_main`; raises DeadlineError, CrashError, or CallError if the function raises."""
        request = json.dumps([function, seconds, *arguments]).encode() + b"\n"
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._exchange(request, seconds)

    def _start(self) -> None:
        self._drop()
        # -P, because modules next to the script would shadow installed ones of the same name. The hash seed is fixed
        # because some generators iterate over sets.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("sandbox_main.py")), self._library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ} | _ENVIRONMENT,
            start_new_session=True,  # to be killed with its fork
        )
        try:
            self._exchange(b"", _START_SECONDS)
        except SandboxError as error:
            self._drop()
            name = self._library.replace("_", "-")
            raise SandboxError(f"{name} does not start ({error}); reinstall it") from None

    def _exchange(self, request: bytes, seconds: float) -> Any:
        """Send the request and receive the reply; kill the process if that takes too long."""
        process, late = self._process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(seconds + GRACE - _END_SECONDS, stop)
        timer.daemon = True
        timer.start()
        reply = b""
        try:
            with contextlib.suppress(OSError):  # a broken pipe: it crashed or was killed
                process.stdin.write(request)
                process.stdin.flush()
                reply = process.stdout.readline()
        except BaseException:
            self._drop()  # after an interrupt, the next call would read this call's reply
            raise
        finally:
            timer.cancel()
            timer.join()  # or it might still kill the process during the next call
        if late.is_set() or not reply.endswith(b"\n"):
            self._drop()
            reply = b'["late", null]' if late.is_set() else b'["crash", null]'
        outcome, value = json.loads(reply)
        if outcome == "late":
            raise DeadlineError(f"no answer within {seconds:g} s")
        if outcome == "crash":
            raise CrashError("its process ended without an answer")
        if outcome == "error":
            raise CallError(value)
        return value

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # closing flushes, which fails for a dead process
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel; do not wait any longer
            process.wait(_END_SECONDS)

    def close(self) -> None:
        with self._lock:
            self._drop()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
