"""What Linux says of the memory that a tensor lies in."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from torch import Tensor

_MAPS = Path("/proc/self/smaps")
GIVES_LARGE_PAGES = _MAPS.exists() and hasattr(mmap, "MADV_HUGEPAGE")
needs_linux = pytest.mark.skipif(not GIVES_LARGE_PAGES, reason="only Linux gives large pages to who asks")


def lies_in_large_pages(tensor: Tensor) -> bool:
    """Whether large pages were asked for where it begins; whether there were any left is the system's affair."""
    here = False
    for line in _MAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(end, 16) for end in first.split("-"))
            here = start <= tensor.data_ptr() < stop
        elif here and first == "VmFlags:":
            return "hg" in line.split()
    return False
