"""Sandbox processes that go from one checker of a test to the next: each start imports its library for a second."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from unittest import mock

from tersely.evaluation.tasks.sandbox import SandboxProcess

# Files that test how these processes start and end.
OWN = ("test_equality.py", "test_graders.py", "test_gym.py")


@contextmanager
def kept_sandboxes() -> Iterator[None]:
    """Within it, processes of closed sandboxes wait for the next that needs their library."""
    kept = defaultdict[str, list[Popen[bytes]]](list)
    start, close = SandboxProcess._start, SandboxProcess.close

    def start_or_take(self: SandboxProcess) -> None:
        while free := not own() and kept[self._library]:
            self._drop()
            self._process = free.pop()
            if self._process.poll() is None:
                return
        start(self)

    def close_or_keep(self: SandboxProcess) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is None and not own():
                kept[self._library].append(self._process)
                self._process = None
        close(self)

    def own() -> bool:
        return any(name in os.environ.get("PYTEST_CURRENT_TEST", "") for name in OWN)

    with (
        mock.patch.object(SandboxProcess, "_start", start_or_take),
        mock.patch.object(SandboxProcess, "close", close_or_keep),
    ):
        yield
    for library, processes in kept.items():
        for process in processes:
            sandbox = SandboxProcess(library)
            sandbox._process = process
            sandbox.close()
