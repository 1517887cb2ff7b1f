"""Where the weights of a checkpoint that is loaded lie: in pages of 2 MB, where the system has them.

A step of decoding reads every weight once. In pages of 4 KB a processor has to look up where each of them lies, and
stops fetching ahead at its end; `benchmarks/w4a8.py` times both. Linux gives large pages where a program asks for them
(transparent huge pages, unless they are switched off), which is what this does. Copies of such tensors, by `deepcopy`
or from another device, lie where torch puts them.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from contextlib import suppress

import torch
from torch import Tensor

_LINE = 64
_ROOM = 64 << 20
"""Bytes that are asked for at once, for small tensors to share pages; pages that nothing lies in take no memory."""
_lock = threading.Lock()
_open: tuple[weakref.ref[mmap.mmap], int] | None = None  # and how much of it is taken


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on torch's default device, in large pages if that is the CPU and the system has them."""
    bytes_needed = math.prod(shape) * dtype.itemsize
    if torch.get_default_device().type != "cpu" or not bytes_needed:
        return torch.zeros(shape, dtype=dtype)
    taken = _take(bytes_needed)
    if taken is None:
        return torch.zeros(shape, dtype=dtype)
    room, at = taken
    return torch.frombuffer(room, dtype=torch.uint8, count=bytes_needed, offset=at).view(dtype).view(shape)


def to_huge_pages(tensor: Tensor) -> Tensor:
    """The same numbers in large pages, if they are on the CPU and the system has them; otherwise the tensor itself.

    Parts of a tensor that devices share (DTensor) stay where they are, too.
    """
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or not tensor.numel():
        return tensor
    with torch.device("cpu"):
        return zeros(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def _take(size: int) -> tuple[mmap.mmap, int] | None:
    """Bytes that are zero, as a mapping and a place in it; None if there are none of this kind.

    A mapping is given back when no tensor in it is used any more.
    """
    global _open
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    size += -size % _LINE
    with suppress(OSError), _lock:
        if size > _ROOM // 2:
            return _ask(size), 0
        room, at = (_open[0](), _open[1]) if _open is not None else (None, 0)
        if room is None or at + size > _ROOM:
            room, at = _ask(_ROOM), 0
        _open = weakref.ref(room), at + size
        return room, at
    return None


def _ask(size: int) -> mmap.mmap:
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them: ordinary pages, then
        room.madvise(mmap.MADV_HUGEPAGE)
    return room
