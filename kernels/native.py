"""The optional library of compiled operations: found once, called by ctypes; plain C, built without torch's headers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from ..errors import unknown

ABI = 3
"""What `tersely_abi` of csrc/native.c has to say; a library left over from another version is not used."""
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that operations accept, as csrc/numbers.h counts them."""
_WORTH = 1 << 19  # elements: what takes one thread a few times as long as waking another


@cache
def torch_only() -> bool:
    """Whether the environment asks to do without compiled operations: TERSELY_KERNELS=torch.

    Raises OptionError for any other value but `auto`, the default.
    """
    asked = os.environ.get("TERSELY_KERNELS") or "auto"
    if asked not in ("auto", "torch"):
        raise unknown("TERSELY_KERNELS", asked, ("auto", "torch"))
    return asked == "torch"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled operations, or None where they were not built, do not fit, or are not wanted."""
    if torch_only():
        return None
    built = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    path = next((path for path in built if path.exists()), None)
    try:
        found = ctypes.CDLL(str(path)) if path else None
        return found if found and found.tersely_abi() == ABI else None
    except (OSError, AttributeError):  # built for another machine, or no library of ours
        return None


def share_rows(work: Callable[[int, int], None], rows: int, columns: int) -> None:
    """Call `work(start, stop)` on all rows, in as many threads as torch may use where there is work enough.

    `work` has to leave the interpreter's lock alone for most of its time, as calls by ctypes do.
    """
    threads = max(1, min(torch.get_num_threads(), rows, rows * columns // _WORTH))
    ends = [rows * i // threads for i in range(threads + 1)]
    others = [_pool().submit(work, ends[i], ends[i + 1]) for i in range(1, threads)]
    work(ends[0], ends[1])
    for other in others:
        other.result()


def parallel_for(work: Callable[[], None], threads: int) -> None:
    """Call `work()` in up to so many threads, this one among them; see `share_rows` about the lock.

    Fewer call it where no more threads can be had. All are done when this returns or raises.
    """
    others: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # no thread can be started
            for _ in range(threads - 1):
                others.append(_pool().submit(work))
        work()
    finally:
        wait(others)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="tersely-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has the pool, but not its threads
