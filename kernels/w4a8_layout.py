"""How low-bit weights lie in memory, and in files.

Outputs come in tiles of 16, the last one filled up. `weight` is uint8 [tiles, lines, 64]. Byte 4 n + j of a line has,
for output n of its tile, in its low half the code of input 8 * line + j, in its high half that of the input 4 further.
`groups` is uint8 [tiles, groups, 2, 16], fine scales and then zeros. Where weights have 8 bits, there are no groups,
and byte 4 n + j of a line is the weight of input 4 * line + j plus 128.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .native import KINDS

TILE, LINE = 16, 64
DEEPEST = 1 << 16
"""Inputs of a layer: with more, sums might leave 32 bits."""
GROUP_SIZES = (32, 64, 128)
"""Inputs that may share a fine scale and a zero."""


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
    halves = rows.unflatten(2, (-1, 2, 4)).permute(0, 2, 3, 1, 4)  # [tiles, lines, 2, 16, 4]
    weight = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(2)
    about = torch.stack((_tiles(fine.to(torch.uint8)), _tiles(zero.to(torch.uint8))), dim=1)
    return weight.contiguous(), about.permute(0, 3, 1, 2).contiguous()


def pack_bytes(whole: Tensor) -> Tensor:
    """`weight` of a layer without groups from 8-bit weights -127..127 [outputs, inputs]."""
    missing = -whole.shape[1] % 4
    codes = F.pad(whole.to(torch.int16), (0, missing)) + 128
    rows: Tensor = _tiles(codes.to(torch.uint8)).unflatten(2, (-1, 4))  # [tiles, 16, lines, 4]
    return rows.permute(0, 2, 1, 3).flatten(2).contiguous()


def unpack(weight: Tensor, groups: Tensor | None) -> Tensor:
    """The whole numbers of the weights, int8 [outputs, inputs], with the padding of both."""
    if groups is None:
        rows: Tensor = weight.unflatten(2, (TILE, 4)).permute(0, 2, 1, 3).flatten(2)
        return (rows.to(torch.int16) - 128).to(torch.int8).flatten(0, 1)
    halves = torch.stack((weight & 15, weight >> 4), dim=2).unflatten(3, (TILE, 4))
    codes = halves.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1).to(torch.int8)
    fine, zero = groups.to(torch.int8).permute(2, 0, 3, 1).flatten(1, 2)[..., None]
    whole: Tensor = (codes.unflatten(1, (groups.shape[1], -1)) - zero) * fine
    return whole.flatten(1)


def check(
    inputs: int,
    weight: Tensor,
    groups: Tensor | None,
    channel_scale: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise OptionError unless the tensors of a layer fit together and its inputs; compiled code believes it."""
    outputs, lines = channel_scale.numel(), weight.shape[1] if weight.ndim == 3 else 0
    tiles, depth = -(-outputs // TILE), lines * (4 if groups is None else 8)
    size = 4 if groups is None else depth // max(1, groups.shape[1] if groups.ndim == 4 else 0)
    wanted = {
        "weight": (weight, (tiles, lines, LINE), (torch.uint8,)),
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
    if not 0 < depth <= DEEPEST or not 0 <= depth - inputs < size:
        wrong.append(f"{depth} inputs with padding, at most {DEEPEST}")
    if wrong:
        raise OptionError(
            f"a layer of {inputs} inputs and {outputs} outputs got {', '.join(wrong)}; accepted: tensors as `pack` "
            f"makes them, groups of {', '.join(map(str, GROUP_SIZES))}"
        )


def _tiles(rows: Tensor) -> Tensor:
    """Rows [outputs, n] as tiles [tiles, 16, n], filled up with zeros."""
    tiles: Tensor = F.pad(rows, (0, 0, 0, -len(rows) % TILE)).unflatten(0, (-1, TILE))
    return tiles
