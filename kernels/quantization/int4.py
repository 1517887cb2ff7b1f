"""Int4 weights of other methods (GPTQ, AWQ, compressed-tensors) in the two grains of our kernel, without calibration.

Theirs are scale[n, g] * (code - zero) with any scale a group; ours allow whole numbers for `fine`, times one scale an
output. So a group's scale moves by about half a unit of its output at most, 1 / (2 * fine) of itself, with `fine` up to
15 where codes reach 8 from their zero, up to 8 where they reach 15. Each output's unit is searched for by the error of
its weights. On Qwen2.5-Coder-0.5B-Instruct in plain 4 bits this error is 2.0 % of the weights (root mean square) for
symmetric groups of 128, beside 12 % of the 4 bits themselves, and 2.9 % beside 10 % for groups of 32 (`python
benchmarks/rounded_checkpoint.py FOLDER OUT`). One scale an output stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ModelError
from ..w4a8_layout import GROUP_SIZES, TILE, pack

SWITCH = "TERSELY_INT4_KERNEL"
"""The variable that asks for our kernel under such checkpoints, see vllm_int4.py."""
STRETCHES = tuple(1 + i / 32 for i in range(33))
"""Units that are tried, as multiples of the finest one in which all groups of an output can be told."""
_AT_ONCE = 1 << 20  # weights worked on at a time: they take 4 bytes each on the way
_LEAST = 1e-30  # scales below are none: all weights are zeros


@dataclass(frozen=True, slots=True)
class Repacked:
    """A layer as w4a8_layout.py has it."""

    weight: Tensor
    groups: Tensor
    channel_scale: Tensor
    """float32 [outputs]."""
    error: float
    """How far the weights are from those of the checkpoint, as a share of them, root mean square."""


def unpack_words(words: Tensor) -> Tensor:
    """Codes uint8 [..., 8 n] from int32 [..., n], the lowest four bits first."""
    codes: Tensor = (words[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return codes.to(torch.uint8).flatten(-2)


def kernel_size(size: int, inputs: int) -> int | None:
    """Inputs of a group in our kernel for groups of `size` in a checkpoint; None where there is none.

    Groups larger than ours are several of ours. size -1, or all inputs: one scale an output.
    """
    if size in (-1, inputs):
        return max(GROUP_SIZES)
    if size <= 0 or inputs % size:
        return None
    return max((ours for ours in GROUP_SIZES if size % ours == 0), default=None)


def repack(words: Tensor, scale: Tensor, zero: Tensor, size: int) -> Repacked:
    """A layer of int4 weights in groups of `size` inputs, for which there is a `kernel_size`.

    words: int32 [outputs, inputs / 8], see `unpack_words`. scale: [outputs, groups]. zero: 0..15 [outputs, groups].
    Raises ModelError for scales that are no numbers.
    """
    outputs, inputs = len(words), words.shape[1] * 8
    ours = kernel_size(size, inputs)
    assert ours is not None
    if not scale.isfinite().all():
        raise ModelError("a layer's scales are not finite; the checkpoint is damaged: get it anew")
    count = -(-inputs // ours)
    scale, zero = (t.repeat_interleave(-(-count // t.shape[1]), dim=1) for t in (scale.float(), zero))
    rows = max(TILE, _AT_ONCE // inputs // TILE * TILE)
    parts, wrong, whole = [], 0.0, 0.0
    for start in range(0, outputs, rows):
        here = slice(start, start + rows)
        *part, w, a = _two_grains(unpack_words(words[here]), scale[here], zero[here], ours)
        parts.append(part)
        wrong, whole = wrong + w, whole + a
    weight, groups, channel_scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Repacked(weight, groups, channel_scale, (wrong / (whole or 1.0)) ** 0.5)


def _two_grains(codes: Tensor, scale: Tensor, zero: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """`weight`, `groups` and `channel_scale` of some outputs, the squared error of their weights, and their square."""
    negative = scale < 0  # some quantizers write such scales; ours count the codes from the other end
    scale, zero = scale.abs(), torch.where(negative, 15 - zero, zero).to(torch.int8)
    inputs = codes.shape[1]
    missing = zero.shape[1] * size - inputs
    steps = F.pad(codes.to(torch.int8), (0, missing)).unflatten(1, (-1, size))
    if negative.any():
        steps = torch.where(negative[..., None], 15 - steps, steps)
    steps = steps - zero[..., None]
    if missing:
        steps[:, -1, size - missing :] = 0
    reach, energy = steps.abs().amax(dim=2), torch.linalg.vector_norm(steps.float(), dim=2).square()
    unit, fine = _fit(scale, reach, energy)
    worth = unit[:, None] * fine
    wrong = energy * (scale - worth).square()
    ratio = scale / worth.clamp(min=_LEAST)
    loose = (ratio - 1).abs() * reach >= 0.5  # small scales in a coarse unit: here other codes are nearer
    if loose.any():
        old, z, most = steps[loose].float(), zero[loose][:, None].float(), (127 / fine[loose]).floor()[:, None]
        new = (old * ratio[loose][:, None]).round().clamp(torch.maximum(-z, -most), torch.minimum(15 - z, most))
        wrong[loose] = (old * scale[loose][:, None] - new * worth[loose][:, None]).square().sum(dim=1)
        steps[loose] = new.to(torch.int8)
    final = (steps + zero[..., None]).flatten(1)[:, :inputs]
    weight, groups = pack(final, fine, zero, size)
    whole = (energy * scale.square()).double().sum().item()
    return weight, groups, unit, wrong.double().sum().item(), whole


def _fit(scale: Tensor, reach: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """The unit of each output [outputs] and its multiples, 1..127 [outputs, groups], that come nearest to scales.

    reach: how far codes are from their zero. energy: the squares of that, summed up. For whatever unit is tried the
    nearest multiples are taken, then the unit for which their error is least.
    """
    most = (127 / reach.clamp(min=1)).floor()
    top = scale.amax(dim=1).clamp(min=_LEAST)
    scale = scale / top[:, None]
    finest = (scale / most).amax(dim=1).clamp(min=_LEAST)
    best = torch.full_like(top, torch.inf)
    unit, fine = finest, torch.ones_like(scale)
    for stretch in STRETCHES:
        tried = (scale / (finest * stretch)[:, None]).round().minimum(most)
        weighted = energy * tried
        u = (weighted * scale).sum(dim=1) / (weighted * tried).sum(dim=1).clamp(min=_LEAST)
        error = (energy * (scale - u[:, None] * tried).square()).sum(dim=1)
        better = error < best
        best, unit = torch.where(better, error, best), torch.where(better, u, unit)
        fine = torch.where(better[:, None], tried, fine)
    return unit * top, fine.clamp(min=1)
