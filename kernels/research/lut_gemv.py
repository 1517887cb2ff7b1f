"""Products of 1- to 4-bit weights and 8-bit activations by table lookup in place of multiplication.

The weight of a code is 2 * code - (2^bits - 1), an odd number: the sum over its bits p of +2^p or -2^p. So four inputs
contribute one of the 16 sums of x[k] with either sign, and one bit of four weights is an index into a table of these
sums. Only 8 of them are stored, because LUT[~i] = -LUT[i] (LUT Tensor Core, arXiv:2408.06003; as there, `pack` prepares
the weights' side). All arithmetic is in integers, so all implementations agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import OptionError
from ..native import library, share_rows
from .bit_planes import check_codes

BITS = (1, 2, 3, 4)
DEEPEST = 1 << 20  # most inputs of a layer; with more, sums could overflow 32 bits
TILE, GROUP, CHUNK = 32, 4, 16


@dataclass(frozen=True, slots=True)
class LutWeight:
    """Weights as table indices. Raises OptionError for a tensor that does not fit."""

    lines: Tensor
    """uint8 [tiles of 32 outputs, chunks of 16 inputs, bits, 64]. Bytes 2 n and 2 n + 1 of a line belong to output n of
    the tile; their halves, from low to high, belong to the chunk's four groups of four inputs. The three low bits of a
    half are the index; the fourth means that the sum is subtracted."""
    outputs: int
    inputs: int

    def __post_init__(self) -> None:
        bits = self.lines.shape[2] if self.lines.ndim == 4 else 0
        shape = (-(-self.outputs // TILE), -(-self.inputs // CHUNK), bits, 2 * TILE)
        fits = self.lines.shape == shape and self.lines.dtype == torch.uint8 and self.lines.is_contiguous()
        if not fits or bits not in BITS or self.outputs < 1 or not 0 < self.inputs <= DEEPEST:
            raise OptionError(
                f"weights of {self.outputs} outputs and {self.inputs} inputs got lines {self.lines.dtype} "
                f"{list(self.lines.shape)}; accepted: the contiguous output of `pack`, with 1 to {DEEPEST} inputs"
            )

    @property
    def bits(self) -> int:
        return self.lines.shape[2]


def pack(codes: Tensor, bits: int) -> LutWeight:
    """Pack integer codes 0..2^bits - 1 [outputs, inputs]; raises OptionError for other codes, widths or shapes."""
    check_codes(codes, bits, BITS)
    outputs, inputs = codes.shape
    padded = F.pad(codes.to(torch.uint8), (0, -inputs % CHUNK, 0, -outputs % TILE))
    parts = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    signs = padded.unflatten(1, (-1, 4, GROUP))[..., None] >> parts & 1  # [outputs, chunks, groups, inputs, bits]
    last = signs[..., 3, :]
    halves = last << 3
    for k in range(3):
        halves |= (signs[..., k, :] ^ last) << k
    pairs = halves[:, :, ::2] | halves[:, :, 1::2] << 4  # [outputs, chunks, 2, bits]
    lines = pairs.unflatten(0, (-1, TILE)).permute(0, 2, 4, 1, 3).flatten(3)
    return LutWeight(lines.contiguous(), outputs, inputs)


def unpack(weight: LutWeight) -> Tensor:
    """The integer weights, int8 [outputs, inputs]."""
    halves: Tensor = torch.stack((weight.lines & 15, weight.lines >> 4), dim=-1).unflatten(3, (TILE, 2))
    halves = halves.permute(0, 3, 1, 4, 5, 2).flatten(2, 4).flatten(0, 1)  # [outputs, groups, bits]
    last = halves >> 3
    bit_of = torch.stack([*((halves >> k & 1) ^ last for k in range(3)), last], dim=2).to(torch.int8)
    powers = 1 << torch.arange(weight.bits, dtype=torch.int8, device=halves.device)
    integers: Tensor = ((2 * bit_of - 1) * powers).sum(dim=-1, dtype=torch.int8).flatten(1)
    return integers[: weight.outputs, : weight.inputs]


def lut_linear(x: Tensor, weight: LutWeight) -> Tensor:
    """Multiply int8 activations [..., inputs] with the weights: int32 [..., outputs]; raises OptionError.

    With weights of code - zero the product is half of this, plus (2^bits - 1 - 2 * zero) / 2 times the sum of x.
    """
    if x.dtype != torch.int8 or not x.ndim or x.shape[-1] != weight.inputs or x.device != weight.lines.device:
        raise OptionError(
            f"activations are {x.dtype} {list(x.shape)} on {x.device}; accepted: int8 [..., {weight.inputs}] on "
            f"{weight.lines.device}, the device of the weights"
        )
    multiply = in_c if x.device.type == "cpu" and library() else reference
    out = multiply(x.reshape(-1, weight.inputs), weight)
    return out.reshape(*x.shape[:-1], weight.outputs)


def reference(x: Tensor, weight: LutWeight) -> Tensor:
    """The definition of `lut_linear` on rows, and its implementation without C; exact in float64."""
    return (x.double() @ unpack(weight).double().T).to(torch.int32)


def in_c(x: Tensor, weight: LutWeight, level: int | None = None) -> Tensor:
    """The product from the native library; `level` chooses its vector instructions, for tests."""
    x = x if x.stride(1) == 1 else x.contiguous()
    native = library()
    assert native, "in_c needs the native library"
    (rows, columns), (tiles, chunks, bits, _) = x.shape, weight.lines.shape
    tables = torch.empty(rows, chunks * 4, 8, dtype=torch.int16)
    out = torch.empty(rows, weight.outputs, dtype=torch.int32)
    native.tersely_lut_tables(x.data_ptr(), rows, columns, x.stride(0), tables.data_ptr(), chunks)
    arguments = (tables.data_ptr(), rows, weight.lines.data_ptr(), chunks, bits, weight.outputs, out.data_ptr())
    level = native.tersely_lut_level() if level is None else level
    share_rows(
        lambda start, stop: native.tersely_lut_tiles(*arguments, start, stop, level), tiles, rows * columns * TILE
    )
    return out
