"""Place loaded weights in 2 MB huge pages on Linux.

A decoding step reads every weight once. With 4 KB pages, the processor has to translate every page's address and stops
prefetching at its end; `benchmarks/w4a8.py` compares both. Linux provides transparent huge pages to programs that ask
for them, unless they are turned off. Copies of such tensors, from `deepcopy` or another device, are in ordinary memory.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from contextlib import suppress

import torch
from torch import Tensor

_ALIGNMENT = 64
_ARENA = 64 << 20
"""Bytes mapped at once, so that small tensors share pages. Untouched pages take no memory."""
_lock = threading.Lock()
_open: tuple[weakref.ref[mmap.mmap], int] | None = None  # the current arena, and the bytes in use


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on torch's default device; in huge pages if that is the CPU and the system has them."""
    size = math.prod(shape) * dtype.itemsize
    allocated = _allocate(size) if torch.get_default_device().type == "cpu" and size else None
    if allocated is None:
        return torch.zeros(shape, dtype=dtype)
    arena, offset = allocated
    return torch.frombuffer(arena, dtype=torch.uint8, count=size, offset=offset).view(dtype).view(shape)


def to_huge_pages(tensor: Tensor) -> Tensor:
    """Copy a CPU tensor into huge pages. Other tensors, including sharded ones (DTensor), are returned as they are."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or not tensor.numel():
        return tensor
    with torch.device("cpu"):
        return zeros(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def _allocate(size: int) -> tuple[mmap.mmap, int] | None:
    """Zeroed bytes, as a mapping and an offset; None if the system has no huge pages.

    A mapping is freed when the last tensor in it is.
    """
    global _open
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    size += -size % _ALIGNMENT
    with suppress(OSError), _lock:
        if size > _ARENA // 2:
            return _map(size), 0
        arena, offset = (_open[0](), _open[1]) if _open is not None else (None, 0)
        if arena is None or offset + size > _ARENA:
            arena, offset = _map(_ARENA), 0
        _open = weakref.ref(arena), offset + size
        return arena, offset
    return None


def _map(size: int) -> mmap.mmap:
    arena = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # this Linux has no huge pages: use ordinary ones
        arena.madvise(mmap.MADV_HUGEPAGE)
    return arena
