"""The optional library of compiled operations: plain C, built without torch's headers and called through ctypes."""

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

from ..errors import check_known

ABI = 3  # the version that `tersely_abi` in csrc/native.c must return; a library of another version is not used
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that operations accept, with their numbers in csrc/numbers.h."""
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64}
_ARGUMENTS = {
    "tersely_signals": "pilllpli",
    "tersely_planes_pack": "pllllpl",
    "tersely_planes_rows": "pllpllllplli",
    "tersely_lut_tables": "plllpl",
    "tersely_lut_tiles": "plplllplli",
}
"""The types of the arguments of C functions, see `_TYPES`."""
_MIN_ELEMENTS = 1 << 19  # elements per thread; fewer are not worth waking another thread for


@cache
def torch_only() -> bool:
    """Whether TERSELY_KERNELS=torch turns compiled operations off; raises OptionError unless it is that or `auto`."""
    value = os.environ.get("TERSELY_KERNELS") or "auto"
    check_known("TERSELY_KERNELS", value, ("auto", "torch"))
    return value == "torch"


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled operations; None if they were not built, do not fit or are turned off."""
    if torch_only():
        return None
    candidates = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    path = next((path for path in candidates if path.exists()), None)
    try:
        loaded = ctypes.CDLL(str(path)) if path else None
        if not loaded or loaded.tersely_abi() != ABI:
            return None
        for name, types in _ARGUMENTS.items():
            getattr(loaded, name).argtypes = [_TYPES[one] for one in types]
        return loaded
    except (OSError, AttributeError):  # built for another machine, or not our library
        return None


def share_rows(work: Callable[[int, int], None], rows: int, columns: int) -> None:
    """Call `work(start, stop)` on all rows, split among threads if there is enough work; it must release the GIL."""
    threads = max(1, min(torch.get_num_threads(), rows, rows * columns // _MIN_ELEMENTS))
    ends = [rows * i // threads for i in range(threads + 1)]
    others = [_pool().submit(work, ends[i], ends[i + 1]) for i in range(1, threads)]
    work(ends[0], ends[1])
    for other in others:
        other.result()


def parallel_for(work: Callable[[], None], threads: int) -> None:
    """Call `work()` in up to this many threads, the current one included, and wait; `work` must release the GIL."""
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
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork

# The op of w4a8.py. A decoding step calls about a hundred layers, so it is registered with torch from C
# (csrc/w4a8_op.c): no Python runs between torch and the kernel.
_CALLS = (
    "torch_get_const_data_ptr",
    "torch_get_mutable_data_ptr",
    *(f"aoti_torch_get_{name}" for name in ("dim", "sizes", "strides", "dtype")),
    "aoti_torch_empty_strided",
    "aoti_torch_delete_tensor_object",
    "torch_delete_stable_ivalue",
    "torch_get_num_threads",
    "torch_exception_get_what_without_backtrace",
    "aoti_torch_check",
    "aoti_torch_library_init_impl",
    "torch_library_impl",
)
_DTYPES = ("float32", "bfloat16", "float16", "uint8")
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PARALLEL = ctypes.CFUNCTYPE(None, _WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


class _TorchCalls(ctypes.Structure):
    """`torch_calls` of csrc/w4a8_op.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _CALLS),
        ("dtypes", ctypes.c_int32 * len(_DTYPES)),
        ("cpu", ctypes.c_int32),
    )


def register_w4a8(margin: float) -> bool:
    """Register the compiled W4A8 layer, with w4a8.py's `MARGIN`, for CPUs, once; returns whether it worked."""
    native = library()
    try:
        if native is None:
            return False
        stable = ctypes.CDLL(torch._C.__file__)  # also loads torch's stable C interface
        calls = _TorchCalls(*(ctypes.cast(getattr(stable, name), ctypes.c_void_p) for name in _CALLS))
        calls.dtypes[:] = [getattr(stable, f"aoti_torch_dtype_{name}")() for name in _DTYPES]
        calls.cpu = stable.aoti_torch_device_type_cpu()
        register = native.tersely_w4a8_register
    except (OSError, AttributeError):  # another torch, or a system without such symbols
        return False
    register.argtypes = (ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p)
    return not register(ctypes.byref(calls), margin, _thread_team())


@_PARALLEL
def python_thread_team(work: Callable[[int], None], shared: int, threads: int, flags: int) -> None:
    """A replacement for GOMP_parallel. Errors cannot reach C, so one thread does everything if no more can start."""
    parallel_for(lambda: work(shared), threads)


def _thread_team() -> ctypes.c_void_p:
    """GOMP_parallel of torch's OpenMP, whose threads already run and are pinned; else `python_thread_team`."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):  # another OpenMP, or Windows
        return ctypes.cast(python_thread_team, ctypes.c_void_p)
