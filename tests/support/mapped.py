"""Whether a tensor is in huge pages, according to Linux."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from torch import Tensor

_MAPS = Path("/proc/self/smaps")


def is_in_huge_pages(tensor: Tensor) -> bool:
    """Whether huge pages were requested at its address; the system may still have none left."""
    return _is_requested(tensor.data_ptr())


def _is_requested(address: int) -> bool:
    here = False
    for line in _MAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(end, 16) for end in first.split("-"))
            here = start <= address < stop
        elif here and first == "VmFlags:":
            return "hg" in line.split()
    return False


def _detect() -> bool:
    if not (_MAPS.exists() and hasattr(mmap, "MADV_HUGEPAGE")):
        return False
    with mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return False
        first = ctypes.c_char.from_buffer(mapping)
        asked = _is_requested(ctypes.addressof(first))
        del first  # so that the mapping can be closed
        return asked


HAS_HUGE_PAGES = _detect()
needs_huge_pages = pytest.mark.skipif(not HAS_HUGE_PAGES, reason="this system has no huge pages")
