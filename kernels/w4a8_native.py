"""The layers of `w4a8.py` in the compiled library: what is handed to csrc/w4a8.c, and which threads work there.

A step of decoding calls hundreds of layers, and each of them would wait for the lines of Python here. So what is the
same from call to call, with the layer's tensors checked, is remembered as long as its weight lives.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .native import KINDS, library, share_rows
from .w4a8 import MARGIN
from .w4a8_layout import TILE, Form, check, form_of

_WORTH = 1 << 18  # products: what takes one thread a few times as long as waking another
_KEPT = 1 << 20  # bytes of scratch that a thread keeps for its next call


class _Job(ctypes.Structure):
    """`w4a8_job` of csrc/w4a8.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "input_scale")),
        *((name, ctypes.c_int64) for name in ("kind", "rows", "columns", "stride")),
        *((name, ctypes.c_void_p) for name in ("codes", "groups", "channel_scale", "bias")),
        *((name, ctypes.c_int64) for name in ("form", "bias_kind", "outputs", "lines", "group_count")),
        ("out", ctypes.c_void_p),
        ("out_kind", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x8", "row_scale", "sums", "room", "tops", "least")),
        ("margin", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("level", "next", "chunk")),
    )


Tensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


class _Known:
    """A layer that was checked: its tensors, which it keeps from being taken for others, and a job to copy."""

    __slots__ = ("columns", "depth", "form", "job", "pointers", "references", "tiles")

    def __init__(self, columns: int, tensors: Tensors) -> None:
        weight, groups, channel_scale, _, bias = tensors
        check(columns, *tensors)
        self.references = tuple(None if t is None else weakref.ref(t) for t in tensors)
        self.pointers = tuple(None if t is None else t.data_ptr() for t in tensors)
        form = form_of(weight, groups)
        self.columns, self.form, self.tiles = columns, form, weight.shape[-3]
        self.depth = weight.shape[-2] * form.inputs
        self.job = _Job(
            columns=columns,
            codes=self.pointers[0],
            groups=self.pointers[1],
            channel_scale=self.pointers[2],
            input_scale=self.pointers[3],
            bias=self.pointers[4],
            form=form,
            bias_kind=0 if bias is None else KINDS[bias.dtype],
            outputs=len(channel_scale),
            lines=weight.shape[-2],
            group_count=1 if groups is None else groups.shape[1],
            margin=MARGIN,
            level=_native()[1],
        )

    def same(self, columns: int, tensors: Tensors) -> bool:
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


def _known_layer(columns: int, tensors: Tensors) -> _Known:
    weight = tensors[0]
    known = _known.get(id(weight))
    if known is None or not known.same(columns, tensors):
        if known is None:
            weakref.finalize(weight, _known.pop, id(weight), None)
        known = _known[id(weight)] = _Known(columns, tensors)
    return known


def in_c(
    x: Tensor,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
    level: int | None = None,
) -> Tensor:
    """The layer from the native library, with its best vectors or those of a lower level (for tests)."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, columns = x.shape
    known = _known_layer(columns, (weight, groups, channel_scale, input_scale, bias))
    job = _Job.from_buffer_copy(known.job)
    half = x.dtype == torch.float16
    out = torch.empty(rows, job.outputs, dtype=torch.float32 if half else x.dtype)
    padded, at = -(-rows // 8) * 8, 0
    tops = rows * known.tiles if known.form is Form.PLANES else 0
    sizes = (padded * known.depth, 4 * padded, 4 * padded * job.group_count, 4 * known.depth, 4 * tops, 4 * padded)
    room = _room(sum(sizes) + 64 * len(sizes))
    at = room.data_ptr() + 63 & -64
    for name, size in zip(("x8", "row_scale", "sums", "room", "tops", "least"), sizes, strict=True):
        setattr(job, name, at)
        at += size + 63 & -64
    job.x, job.kind, job.rows, job.stride = x.data_ptr(), KINDS[x.dtype], rows, x.stride(0)
    job.out, job.out_kind = out.data_ptr(), KINDS[out.dtype]
    if level is not None:
        job.level = level
    _run(job, known.tiles, rows * known.depth * TILE)
    return out.to(x.dtype) if half else out


def _room(size: int) -> Tensor:
    """Scratch memory of at least so many bytes, a thread's own."""
    if size > _KEPT:
        return torch.empty(size, dtype=torch.uint8)
    kept: Tensor | None = getattr(_scratch, "kept", None)
    if kept is None:
        kept = _scratch.kept = torch.empty(_KEPT, dtype=torch.uint8)
    return kept


def _run(job: _Job, tiles: int, products: int) -> None:
    """Work a job off; `products`: those of one tile. Threads are torch's own where its OpenMP can be reached."""
    native, team, here = _native()[0], _team(), ctypes.byref(job)
    threads = min(torch.get_num_threads(), tiles, tiles * products // _WORTH)
    if threads < 2:
        native.tersely_w4a8_quantize(here)
        native.tersely_w4a8_tiles(here, 0, tiles)
        if job.form == Form.PLANES:
            native.tersely_w4a8_least(here)
            native.tersely_w4a8_refine(here, 0, tiles)
    elif team is not None:
        native.tersely_w4a8_all(here, team, threads)
    else:
        native.tersely_w4a8_quantize(here)
        share_rows(lambda start, stop: native.tersely_w4a8_tiles(here, start, stop), tiles, products)
        if job.form == Form.PLANES:
            native.tersely_w4a8_least(here)
            share_rows(lambda start, stop: native.tersely_w4a8_refine(here, start, stop), tiles, products)


@cache
def _team() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP library that torch has loaded: its threads are awake, and bound as the user wants."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):  # another OpenMP, or Windows, where nothing is the whole process
        return None


@cache
def _native() -> tuple[Any, int]:
    """The library, and its best level here."""
    found = library()
    assert found, "in_c is only for machines with the native library"
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, arguments in (
        ("quantize", (pointer,)),
        ("tiles", (pointer, number, number)),
        ("least", (pointer,)),
        ("refine", (pointer, number, number)),
        ("all", (pointer, pointer, ctypes.c_int)),
    ):
        function = getattr(found, f"tersely_w4a8_{name}")
        function.argtypes, function.restype = arguments, None
    return found, found.tersely_w4a8_level()
