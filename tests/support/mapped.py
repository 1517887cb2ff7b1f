"""What Linux says of the memory that a tensor lies in."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from torch import Tensor

_MAPS = Path("/proc/self/smaps")


def lies_in_large_pages(tensor: Tensor) -> bool:
    """Whether large pages were asked for where it begins; whether there were any left is the system's affair."""
    return _asked_for(tensor.data_ptr())


def _asked_for(address: int) -> bool:
    here = False
    for line in _MAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(end, 16) for end in first.split("-"))
            here = start <= address < stop
        elif here and first == "VmFlags:":
            return "hg" in line.split()
    return False


def _found_out() -> bool:
    if not (_MAPS.exists() and hasattr(mmap, "MADV_HUGEPAGE")):
        return False
    with mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        try:
            room.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return False
        first = ctypes.c_char.from_buffer(room)
        asked = _asked_for(ctypes.addressof(first))
        del first  # a mapping that is in use cannot be closed
        return asked


GIVES_LARGE_PAGES = _found_out()
needs_large_pages = pytest.mark.skipif(not GIVES_LARGE_PAGES, reason="this system has no large pages for who asks")
