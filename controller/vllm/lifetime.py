"""How vLLM's processes end: with the server that started them, also after `kill -9`; and why that server has ended."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from .trace_channel import PLACE

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
