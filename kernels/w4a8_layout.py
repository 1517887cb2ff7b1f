"""The memory layout of low-bit weights, which is also the layout in files.

Outputs are grouped into tiles of 16; the last tile is padded. `weight` is uint8 [tiles, lines, 64]. With 4 bits, a line
covers 8 inputs: for output n of the tile, byte 4 n + j holds the code of input 8 * line + j in its low half and that of
input 8 * line + j + 4 in its high half. `groups` is uint8 [tiles, groups, 2, 16]: fine scales, then zeros. With 8 bits,
`groups` is None, a line covers 4 inputs, and byte 4 n + j is the weight of input 4 * line + j plus 128. In planes,
`weight` is [2, tiles, lines, 64]: the high halves of these bytes, laid out as 4-bit codes, then the low halves.

On Linux, weights are placed in transparent huge pages of 2 MB: with pages of 4 KB, a processor that reads every weight
once translates each page's address and stops prefetching at its end (`benchmarks/w4a8.py` compares both).
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from contextlib import suppress
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS

TILE, LINE = 16, 64
DEEPEST = 1 << 16
"""Most inputs of a layer. With more, sums could overflow 32 bits, in planes first: 2^31 / (256 * 127) = 66052."""
GROUP_SIZES = (32, 64, 128)  # how many inputs may share a fine scale and a zero
_ALIGNMENT = 64
_ARENA = 64 << 20  # bytes mapped at once, so that small tensors share pages. Untouched pages take no memory.
_lock = threading.Lock()
_open: tuple[weakref.ref[mmap.mmap], int] | None = None  # the current arena, and the bytes in use


class PackedLayout(IntEnum):
    """How the weights of a layer are stored, with the numbers of csrc/w4a8.h."""

    GRAINS = 0  # 4 bits, with a fine scale and a zero for each group
    BYTES = 1  # 8 bits
    PLANES = 2  # 8 bits, high halves and low halves apart

    @property
    def inputs(self) -> int:
        """Inputs per line."""
        return 4 if self is PackedLayout.BYTES else 8


def choose_layout(weight: Tensor, groups: Tensor | None) -> PackedLayout:
    """Tell the layout of a layer from its tensors."""
    if groups is not None:
        return PackedLayout.GRAINS
    return PackedLayout.PLANES if weight.ndim == 4 else PackedLayout.BYTES


def pack(codes: Tensor, fine: Tensor, zero: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pack 4-bit weights in groups of `size` inputs, the last perhaps smaller; returns `weight` and `groups`.

    `codes` are 0..15 [outputs, inputs], fine scales and zeros [outputs, groups]. Raises OptionError for others.
    """
    if size not in GROUP_SIZES:
        raise OptionError(f"groups of {size} inputs; accepted: {', '.join(map(str, GROUP_SIZES))}")
    outputs, inputs = codes.shape
    count = fine.shape[1]
    if count != -(-inputs // size) or fine.shape != zero.shape or len(fine) != outputs:
        raise OptionError(
            f"scales {list(fine.shape)} and zeros {list(zero.shape)} do not fit codes {list(codes.shape)} in groups of "
            f"{size}; accepted: [outputs, inputs / {size}, rounded up] for both"
        )
    padding = zero[:, -1:].expand(-1, count * size - inputs)  # a code equal to its zero is a weight of 0
    rows = _to_tiles(torch.cat((codes, padding), dim=1).to(torch.uint8))  # [tiles, 16, inputs]
    groups = torch.stack((_to_tiles(fine.to(torch.uint8)), _to_tiles(zero.to(torch.uint8))), dim=1)
    return _pack_halves(rows), groups.permute(0, 3, 1, 2).contiguous()


def pack_bytes(integers: Tensor) -> Tensor:
    """Pack 8-bit weights -127..127 [outputs, inputs]."""
    codes = F.pad(integers.to(torch.int16), (0, -integers.shape[1] % 4)) + 128
    rows: Tensor = _to_tiles(codes.to(torch.uint8)).unflatten(2, (-1, 4))  # [tiles, 16, lines, 4]
    return rows.permute(0, 2, 1, 3).flatten(2).contiguous()


def pack_planes(integers: Tensor) -> Tensor:
    """Pack 8-bit weights -127..127 [outputs, inputs] in planes."""
    codes = F.pad(integers.to(torch.int16), (0, -integers.shape[1] % 8)) + 128
    rows = _to_tiles(codes.to(torch.uint8))
    return torch.stack((_pack_halves(rows >> 4), _pack_halves(rows & 15)))


def unpack(weight: Tensor, groups: Tensor | None) -> Tensor:
    """Unpack the integer weights, int8 [outputs, inputs], including the padding of both."""
    layout = choose_layout(weight, groups)
    if layout is PackedLayout.PLANES:
        high, low = (_unpack_halves(plane).to(torch.int16) for plane in weight)
        return (16 * high + low - 128).to(torch.int8)
    if layout is PackedLayout.BYTES or groups is None:
        rows: Tensor = weight.unflatten(2, (TILE, 4)).permute(0, 2, 1, 3).flatten(2)
        return (rows.to(torch.int16) - 128).to(torch.int8).flatten(0, 1)
    fine, zero = groups.to(torch.int8).permute(2, 0, 3, 1).flatten(1, 2)[..., None]
    integers: Tensor = (_unpack_halves(weight).unflatten(1, (groups.shape[1], -1)) - zero) * fine
    return integers.flatten(1)


def preview(weight: Tensor) -> Tensor:
    """Twice the weights in planes as estimated from their high halves, in the middle: int16 [outputs, inputs]."""
    return 32 * (_unpack_halves(weight[0]).to(torch.int16) - 8) + 15


LayerTensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]
"""The tensors of a layer: weight, groups, channel_scale, input_scale, bias."""


def split_layers(
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
    second_weight: Tensor | None = None,
    second_scale: Tensor | None = None,
) -> list[LayerTensors]:
    """The layer, and the second one with 8-bit weights if there is one; the bias is split between them."""
    if second_weight is None or second_scale is None:
        if second_weight is not second_scale:
            raise OptionError("only one of second_weight and second_scale is given; accepted: both or neither")
        return [(weight, groups, channel_scale, input_scale, bias)]
    count = channel_scale.numel()
    own, rest = (bias, bias) if bias is None or not bias.ndim else (bias[:count], bias[count:])
    return [(weight, groups, channel_scale, input_scale, own), (second_weight, None, second_scale, input_scale, rest)]


def check_layer(
    inputs: int,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise OptionError unless a layer's tensors fit each other and its inputs, on which the compiled code relies."""
    layout = choose_layout(weight, groups)
    planes = layout is PackedLayout.PLANES
    outputs, lines = channel_scale.numel(), weight.shape[-2] if weight.ndim == 3 + planes else 0
    tiles, depth = -(-outputs // TILE), lines * layout.inputs
    size = layout.inputs if groups is None else depth // max(1, groups.shape[1] if groups.ndim == 4 else 0)
    expected = {
        "weight": (weight, (*((2,) if planes else ()), tiles, lines, LINE), (torch.uint8,)),
        "groups": (groups, (tiles, depth // max(1, size), 2, TILE), (torch.uint8,)),
        "channel_scale": (channel_scale, (outputs,), (torch.float32,)),
        "input_scale": (input_scale, (inputs,), (torch.float32,)),
        "bias": (bias, (outputs,), tuple(KINDS)),
    }
    wrong = [
        f"{name} {tensor.dtype} {list(tensor.shape)}{'' if tensor.is_contiguous() else ' not contiguous'}"
        for name, (tensor, shape, dtypes) in expected.items()
        if tensor is not None and not (tensor.shape == shape and tensor.dtype in dtypes and tensor.is_contiguous())
    ]
    if groups is not None and size not in GROUP_SIZES:
        wrong.append(f"groups of {size} inputs")
    if not outputs:
        wrong.append("no outputs")
    if not 0 < depth <= DEEPEST or not 0 <= depth - inputs < size:
        wrong.append(f"{depth} inputs with padding, at most {DEEPEST}")
    if wrong:
        raise OptionError(
            f"a layer of {inputs} inputs and {outputs} outputs got {', '.join(wrong)}; accepted: tensors as `pack` "
            f"makes them, in groups of {', '.join(map(str, GROUP_SIZES))}"
        )


def _pack_halves(rows: Tensor) -> Tensor:
    """Pack codes 0..15 in tiles [tiles, 16, inputs], two per byte: [tiles, lines, 64]."""
    halves = rows.unflatten(2, (-1, 2, 4)).permute(0, 2, 3, 1, 4)  # [tiles, lines, 2, 16, 4]
    packed: Tensor = halves[:, :, 0] | halves[:, :, 1] << 4
    return packed.flatten(2).contiguous()


def _unpack_halves(plane: Tensor) -> Tensor:
    """Codes from [tiles, lines, 64]: int8 [outputs, inputs]."""
    halves = torch.stack((plane & 15, plane >> 4), dim=2).unflatten(3, (TILE, 4))
    codes: Tensor = halves.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)
    return codes.to(torch.int8)


def _to_tiles(rows: Tensor) -> Tensor:
    """Rows [outputs, n] as tiles [tiles, 16, n], padded with zeros."""
    tiles: Tensor = F.pad(rows, (0, 0, 0, -len(rows) % TILE)).unflatten(0, (-1, TILE))
    return tiles


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
    """Zeroed bytes, as a mapping, freed with its last tensor, and an offset; None if the system has no huge pages."""
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
