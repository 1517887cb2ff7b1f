"""The layers of `w4a8.py` in the compiled library: what is handed to csrc/w4a8.c, and which threads work there.

A step of decoding calls hundreds of layers, and each of them would wait for the lines of Python here. So what is the
same from call to call, with the layer's tensors checked, is remembered as long as its weight lives.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .native import KINDS, library, run_at_once
from .w4a8 import MARGIN
from .w4a8_layout import Tensors, check, form_of, side_by_side

_KEPT = 1 << 20  # bytes of scratch that a thread keeps for its next call


class _Layer(ctypes.Structure):
    """`w4a8_layer` of csrc/w4a8.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "groups", "channel_scale", "input_scale", "bias")),
        *(
            (name, ctypes.c_int64)
            for name in ("form", "bias_kind", "columns", "outputs", "lines", "group_count", "level")
        ),
        ("margin", ctypes.c_float),
        ("beside", ctypes.c_void_p),
    )


def _layer(columns: int, tensors: Tensors, level: int) -> _Layer:
    weight, groups, channel_scale, _, bias = tensors
    return _Layer(
        *(None if t is None else t.data_ptr() for t in tensors),
        form=form_of(weight, groups),
        bias_kind=0 if bias is None else KINDS[bias.dtype],
        columns=columns,
        outputs=len(channel_scale),
        lines=weight.shape[-2],
        group_count=1 if groups is None else groups.shape[1],
        level=level,
        margin=MARGIN,
    )


Given = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""A layer, and weight and channel_scale of one beside it."""


class _Known:
    """A layer that was checked: its tensors, which it keeps from being taken for others, as C wants them."""

    __slots__ = ("columns", "here", "layers", "outputs", "pointers", "references")

    def __init__(self, columns: int, tensors: Given, level: int) -> None:
        *_, beside, beside_scale = tensors
        parts = side_by_side(tensors[:5], beside, beside_scale)
        for part in parts:
            check(columns, *part)
        self.references = tuple(None if t is None else weakref.ref(t) for t in tensors)
        self.pointers = tuple(None if t is None else t.data_ptr() for t in tensors)
        self.columns, self.outputs = columns, sum(len(part[2]) for part in parts)
        self.layers = [_layer(columns, part, level) for part in parts]
        for one, other in pairwise(self.layers):
            one.beside = ctypes.addressof(other)
        self.here = ctypes.byref(self.layers[0])

    def same(self, columns: int, tensors: Given) -> bool:
        """Whether these are the tensors, and where they were."""
        if columns != self.columns:
            return False
        for tensor, reference, pointer in zip(tensors, self.references, self.pointers, strict=True):
            if pointer != (None if tensor is None else tensor.data_ptr()):
                return False
            if reference is not None and reference() is not tensor:
                return False
        return True


_known: dict[int, _Known] = {}  # by the id of the weight, with which an entry goes
_scratch = threading.local()


def _known_layer(columns: int, tensors: Given) -> _Known:
    weight = tensors[0]
    known = _known.get(id(weight))
    if known is None or not known.same(columns, tensors):
        if known is None:
            weakref.finalize(weight, _known.pop, id(weight), None)
        known = _known[id(weight)] = _Known(columns, tensors, _native()[1])
    return known


def in_c(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
    beside: Tensor | None = None,
    beside_scale: Tensor | None = None,
    level: int | None = None,
) -> Tensor:
    """The layer from the native library, with its best vectors or those of a lower level (for tests)."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, columns = x.shape
    tensors = (weight, groups, channel_scale, input_scale, bias, beside, beside_scale)
    known = _known_layer(columns, tensors) if level is None else _Known(columns, tensors, level)
    native, half = _native()[0], x.dtype == torch.float16
    out = torch.empty(rows, known.outputs, dtype=torch.float32 if half else x.dtype)
    threads = torch.get_num_threads()
    room = _room(native.tersely_w4a8_room(known.here, rows))
    whence, to = (x.data_ptr(), KINDS[x.dtype], rows, x.stride(0)), (out.data_ptr(), KINDS[out.dtype])
    native.tersely_w4a8_run(known.here, *whence, *to, room.data_ptr(), _team() if threads > 1 else None, threads)
    return out.to(x.dtype) if half else out


def _room(size: int) -> Tensor:
    """Scratch memory of at least so many bytes, a thread's own."""
    if size > _KEPT:
        return torch.empty(size, dtype=torch.uint8)
    kept: Tensor | None = getattr(_scratch, "kept", None)
    if kept is None:
        kept = _scratch.kept = torch.empty(_KEPT, dtype=torch.uint8)
    return kept


_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PARALLEL = ctypes.CFUNCTYPE(None, _WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


@_PARALLEL
def _our_threads(work: Callable[[int], None], shared: int, threads: int, flags: int) -> None:
    """Stands in for GOMP_parallel. C cannot be told of errors; one thread does all of it where there are no more."""
    run_at_once(lambda: work(shared), threads)


@cache
def _team() -> ctypes.c_void_p:
    """GOMP_parallel of the OpenMP library that torch has loaded: its threads are awake, and bound as the user wants.

    `_our_threads` where it cannot be reached.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):  # another OpenMP, or Windows, where nothing is the whole process
        return ctypes.cast(_our_threads, ctypes.c_void_p)


@cache
def _native() -> tuple[Any, int]:
    """The library, and its best level here."""
    found = library()
    assert found, "in_c is only for machines with the native library"
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.tersely_w4a8_room.argtypes, found.tersely_w4a8_room.restype = (pointer, number), number
    whence, to = (pointer, number, number, number), (pointer, number)
    found.tersely_w4a8_run.argtypes = (pointer, *whence, *to, pointer, pointer, number)
    found.tersely_w4a8_run.restype = None
    return found, found.tersely_w4a8_level()
