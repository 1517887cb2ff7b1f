"""Vector instructions of the compiled layers: those this machine has, lesser ones, and emulated AMX."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tersely.kernels import native
from tersely.kernels.w4a8 import compiled

FOUND = native.library()
BEST: int = FOUND.tersely_w4a8_level() if FOUND is not None and compiled() else -1
AMX = 3
NAMES = ("any", "avx2", "avx512", "amx")
COMPILER = shutil.which("cc")


def _emulated() -> bool:
    return BEST == AMX - 1 and COMPILER is not None and bool(FOUND and FOUND.tersely_w4a8_has_amx())


LEVELS = {name: level for level, name in enumerate(NAMES) if level <= BEST or (level == AMX and _emulated())}


@contextmanager
def use_vectors(level: int) -> Iterator[None]:
    """Use these vector instructions while the context lasts; AMX is emulated if necessary."""
    assert FOUND is not None
    used = ctypes.c_int64.in_dll(FOUND, "tersely_w4a8_vectors")
    emulating = level > BEST
    if emulating:
        assert not emulator().amx_emulate(True)
    used.value = level
    try:
        yield
    finally:
        used.value = BEST
        if emulating:
            emulator().amx_emulate(False)


def count_emulated() -> int:
    """The number of instructions emulated so far."""
    return int(emulator().amx_emulated())


@cache
def emulator() -> ctypes.CDLL:
    """The compiled amx_emulator.c."""
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "emulator.so"
        source = Path(__file__).with_name("amx_emulator.c")
        subprocess.run([COMPILER, "-O2", "-fPIC", "-shared", str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))
