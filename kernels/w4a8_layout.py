"""How low-bit weights lie in memory, and in files.

Outputs come in tiles of 16, the last one filled up. `weight` is uint8 [tiles, lines, 64]. Byte 4 n + j of a line has,
for output n of its tile, in its low half the code of input 8 * line + j, in its high half that of the input 4 further.
`groups` is uint8 [tiles, groups, 2, 16], fine scales and then zeros. Where weights have 8 bits, there are no groups,
and byte 4 n + j of a line is the weight of input 4 * line + j plus 128. In planes, `weight` is [2, tiles, lines, 64]:
the high halves of these bytes laid out as codes, and then the low halves.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS

TILE, LINE = 16, 64
DEEPEST = 1 << 16
"""Inputs of a layer: with more, sums might leave 32 bits, those of planes first: 2^31 / (256 * 127) = 66052."""
GROUP_SIZES = (32, 64, 128)
"""Inputs that may share a fine scale and a zero."""


class PackedLayout(IntEnum):
    """How the weights of a layer lie, as csrc/w4a8.h counts it."""

    GRAINS = 0
    """4 bits, with a fine scale and a zero for each group."""
    BYTES = 1
    PLANES = 2
    """8 bits, high halves and low halves apart."""

    @property
    def inputs(self) -> int:
        """Inputs of a line."""
        return 4 if self is PackedLayout.BYTES else 8


def choose_layout(weight: Tensor, groups: Tensor | None) -> PackedLayout:
    """What form the tensors of a layer have."""
    return (
        PackedLayout.GRAINS if groups is not None else PackedLayout.PLANES if weight.ndim == 4 else PackedLayout.BYTES
    )


def pack(codes: Tensor, fine: Tensor, zero: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`weight` and `groups` from codes 0..15 [outputs, inputs] and from fine scales and zeros [outputs, groups].

    size: inputs of a group; the last one may have fewer. Raises OptionError for a size that is not accepted.
    """
    if size not in GROUP_SIZES:
        raise OptionError(f"groups of {size} inputs; accepted: {', '.join(map(str, GROUP_SIZES))}")
    outputs, inputs = codes.shape
    count = fine.shape[1]
    if count != -(-inputs // size) or fine.shape != zero.shape or len(fine) != outputs:
        raise OptionError(
            f"scales {list(fine.shape)} and zeros {list(zero.shape)} do not fit codes {list(codes.shape)} in groups of "
            f"{size}; accepted: [outputs, inputs / {size}, rounded up] of both"
        )
    missing = count * size - inputs
    padding = zero[:, -1:].expand(-1, missing)  # what it says is nothing
    rows = _tiles(torch.cat((codes, padding), dim=1).to(torch.uint8))  # [tiles, 16, inputs]
    about = torch.stack((_tiles(fine.to(torch.uint8)), _tiles(zero.to(torch.uint8))), dim=1)
    return _halves(rows), about.permute(0, 3, 1, 2).contiguous()


def pack_bytes(whole: Tensor) -> Tensor:
    """`weight` of a layer without groups from 8-bit weights -127..127 [outputs, inputs]."""
    missing = -whole.shape[1] % 4
    codes = F.pad(whole.to(torch.int16), (0, missing)) + 128
    rows: Tensor = _tiles(codes.to(torch.uint8)).unflatten(2, (-1, 4))  # [tiles, 16, lines, 4]
    return rows.permute(0, 2, 1, 3).flatten(2).contiguous()


def pack_planes(whole: Tensor) -> Tensor:
    """`weight` of a layer in planes from 8-bit weights -127..127 [outputs, inputs]."""
    codes = F.pad(whole.to(torch.int16), (0, -whole.shape[1] % 8)) + 128
    rows = _tiles(codes.to(torch.uint8))
    return torch.stack((_halves(rows >> 4), _halves(rows & 15)))


def unpack(weight: Tensor, groups: Tensor | None) -> Tensor:
    """The whole numbers of the weights, int8 [outputs, inputs], with the padding of both."""
    form = choose_layout(weight, groups)
    if form is PackedLayout.PLANES:
        high, low = (_codes(plane).to(torch.int16) for plane in weight)
        return (16 * high + low - 128).to(torch.int8)
    if form is PackedLayout.BYTES or groups is None:
        rows: Tensor = weight.unflatten(2, (TILE, 4)).permute(0, 2, 1, 3).flatten(2)
        return (rows.to(torch.int16) - 128).to(torch.int8).flatten(0, 1)
    fine, zero = groups.to(torch.int8).permute(2, 0, 3, 1).flatten(1, 2)[..., None]
    whole: Tensor = (_codes(weight).unflatten(1, (groups.shape[1], -1)) - zero) * fine
    return whole.flatten(1)


def preview(weight: Tensor) -> Tensor:
    """Twice what high halves alone say of weights in planes, the middle of what they leave open: int16 as `unpack`."""
    return 32 * (_codes(weight[0]).to(torch.int16) - 8) + 15


Tensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]
"""A layer: weight, groups, channel_scale, input_scale, bias."""


def interleave(layer: Tensors, beside: Tensor | None, beside_scale: Tensor | None) -> list[Tensors]:
    """The layer, and one of 8-bit weights beside it if any: the bias of both divided."""
    if beside is None or beside_scale is None:
        if beside is not beside_scale:
            raise OptionError("only one of beside and beside_scale is given; accepted: both or none")
        return [layer]
    weight, groups, channel_scale, input_scale, bias = layer
    count = channel_scale.numel()
    own, rest = (bias, bias) if bias is None or not bias.ndim else (bias[:count], bias[count:])
    return [(weight, groups, channel_scale, input_scale, own), (beside, None, beside_scale, input_scale, rest)]


def check(
    inputs: int,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise OptionError unless the tensors of a layer fit together and its inputs; compiled code believes it."""
    form = choose_layout(weight, groups)
    outputs, lines = channel_scale.numel(), weight.shape[-2] if weight.ndim == 3 + (form is PackedLayout.PLANES) else 0
    tiles, depth = -(-outputs // TILE), lines * form.inputs
    size = form.inputs if groups is None else depth // max(1, groups.shape[1] if groups.ndim == 4 else 0)
    wanted = {
        "weight": (weight, (*((2,) if form is PackedLayout.PLANES else ()), tiles, lines, LINE), (torch.uint8,)),
        "groups": (groups, (tiles, depth // max(1, size), 2, TILE), (torch.uint8,)),
        "channel_scale": (channel_scale, (outputs,), (torch.float32,)),
        "input_scale": (input_scale, (inputs,), (torch.float32,)),
        "bias": (bias, (outputs,), tuple(KINDS)),
    }
    wrong = [
        f"{name} {tensor.dtype} {list(tensor.shape)}{'' if tensor.is_contiguous() else ' not contiguous'}"
        for name, (tensor, shape, dtypes) in wanted.items()
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
            f"makes them, groups of {', '.join(map(str, GROUP_SIZES))}"
        )


def _halves(rows: Tensor) -> Tensor:
    """Codes 0..15 in tiles [tiles, 16, inputs], two of them a byte: [tiles, lines, 64]."""
    halves = rows.unflatten(2, (-1, 2, 4)).permute(0, 2, 3, 1, 4)  # [tiles, lines, 2, 16, 4]
    packed: Tensor = halves[:, :, 0] | halves[:, :, 1] << 4
    return packed.flatten(2).contiguous()


def _codes(plane: Tensor) -> Tensor:
    """Codes from [tiles, lines, 64]: int8 [outputs, inputs]."""
    halves = torch.stack((plane & 15, plane >> 4), dim=2).unflatten(3, (TILE, 4))
    codes: Tensor = halves.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)
    return codes.to(torch.int8)


def _tiles(rows: Tensor) -> Tensor:
    """Rows [outputs, n] as tiles [tiles, 16, n], filled up with zeros."""
    tiles: Tensor = F.pad(rows, (0, 0, 0, -len(rows) % TILE)).unflatten(0, (-1, TILE))
    return tiles
