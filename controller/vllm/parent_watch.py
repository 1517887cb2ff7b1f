"""Ends vLLM's processes once the server that started them is gone: after `kill -9` nothing else would."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time

from .trace_channel import PLACE

SERVED = "TERSELY_SERVE"
"""The variable by which the processes of `tersely serve --engine vllm` know that they are."""
_EVERY = 1.0
"""Seconds between two looks."""


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
