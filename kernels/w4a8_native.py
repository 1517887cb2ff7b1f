"""The layers of `w4a8.py` on CPUs, compiled: what csrc/w4a8_op.c is given of torch, and which threads work there.

A step of decoding calls a hundred layers, so the op is one of torch's own kind: between torch and csrc/w4a8.c there is
no Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from .native import library, parallel_for

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


class _Torch(ctypes.Structure):
    """`torch_calls` of csrc/w4a8_op.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _CALLS),
        ("dtypes", ctypes.c_int32 * len(_DTYPES)),
        ("cpu", ctypes.c_int32),
    )


def register(margin: float) -> bool:
    """Make the native library's layers what the op does on CPUs; whether that could be done. Once a process.

    margin: of 8-bit weights in planes, how far below a row's highest a tile may be for its low halves to be read.
    """
    found = library()
    try:
        if found is None:
            return False
        stable = ctypes.CDLL(torch._C.__file__)  # which brings with it what torch keeps for C
        calls = _Torch(*(ctypes.cast(getattr(stable, name), ctypes.c_void_p) for name in _CALLS))
        calls.dtypes[:] = [getattr(stable, f"aoti_torch_dtype_{name}")() for name in _DTYPES]
        calls.cpu = stable.aoti_torch_device_type_cpu()
        made = found.tersely_w4a8_register
    except (OSError, AttributeError):  # another torch, or where such names cannot be looked up
        return False
    made.argtypes = (ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p)
    return not made(ctypes.byref(calls), margin, _team())


_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PARALLEL = ctypes.CFUNCTYPE(None, _WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


@_PARALLEL
def our_threads(work: Callable[[int], None], shared: int, threads: int, flags: int) -> None:
    """Stands in for GOMP_parallel. C cannot be told of errors; one thread does all of it where there are no more."""
    parallel_for(lambda: work(shared), threads)


def _team() -> ctypes.c_void_p:
    """GOMP_parallel of the OpenMP library that torch has loaded: its threads are awake, and bound as the user wants.

    `our_threads` where it cannot be reached.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):  # another OpenMP, or Windows, where nothing is the whole process
        return ctypes.cast(our_threads, ctypes.c_void_p)
