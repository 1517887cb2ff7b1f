"""Conversion of other methods' int4 weights (GPTQ, AWQ, compressed-tensors) to dual-grained ones, without calibration.

Their weights are scale[n, g] * (code - zero) with a floating-point scale per group. Ours have an integer `fine` per
group, times one scale per output, chosen to minimize the error of its weights. So a group's scale changes by at most a
share of about 1 / (2 * fine), where `fine` is up to 15 if codes are within 8 of their zero, and up to 8 if they are 15
from it. Outputs with a single scale stay exact. docs/QUANTIZATION.md has the additional error of a real checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ModelError
from ..w4a8_layout import GROUP_SIZES, TILE, pack
from .dual_grained import LEAST

SWITCH = "TERSELY_INT4_KERNEL"
"""The environment variable that enables our kernel for such checkpoints, see vllm_int4.py."""
STRETCHES = tuple(1 + i / 32 for i in range(33))
"""Units to try, as multiples of the finest one that can represent all groups of an output."""
_AT_ONCE = 1 << 20  # weights per step; each takes 4 bytes of temporary memory


@dataclass(frozen=True, slots=True)
class Repacked:
    """A layer in the layout of w4a8_layout.py."""

    weight: Tensor
    groups: Tensor
    channel_scale: Tensor  # float32 [outputs]
    error: float  # relative error of the weights compared with the checkpoint, root mean square


def unpack_words(words: Tensor) -> Tensor:
    """Unpack codes, uint8 [..., 8 n], from int32 [..., n], lowest four bits first."""
    codes: Tensor = (words[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return codes.to(torch.uint8).flatten(-2)


def choose_group_size(size: int, inputs: int) -> int | None:
    """The kernel's group size for `size` (-1: all) inputs with one scale, which may be split; None if there is none."""
    if size in (-1, inputs):
        return max(GROUP_SIZES)
    if size <= 0 or inputs % size:
        return None
    return max((ours for ours in GROUP_SIZES if size % ours == 0), default=None)


def repack(words: Tensor, scale: Tensor, zero: Tensor, size: int) -> Repacked:
    """Convert a layer of int4 weights; raises ModelError for scales that are NaN or infinite.

    `words` are int32 [outputs, inputs / 8], scales and zeros 0..15 [outputs, groups] of `size`, see
    `choose_group_size`.
    """
    outputs, inputs = len(words), words.shape[1] * 8
    ours = choose_group_size(size, inputs)
    assert ours is not None
    if not scale.isfinite().all():
        raise ModelError("a layer's scales are NaN or infinite; the checkpoint is damaged, download it again")
    count = -(-inputs // ours)
    scale, zero = (t.repeat_interleave(-(-count // t.shape[1]), dim=1) for t in (scale.float(), zero))
    rows = max(TILE, _AT_ONCE // inputs // TILE * TILE)
    parts, error, energy = [], 0.0, 0.0
    for start in range(0, outputs, rows):
        here = slice(start, start + rows)
        *part, part_error, part_energy = _convert(unpack_words(words[here]), scale[here], zero[here], ours)
        parts.append(part)
        error, energy = error + part_error, energy + part_energy
    weight, groups, channel_scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Repacked(weight, groups, channel_scale, (error / (energy or 1.0)) ** 0.5)


def _convert(codes: Tensor, scale: Tensor, zero: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """`weight`, `groups` and `channel_scale` of some outputs, the squared error of their weights, and their energy."""
    negative = scale < 0  # some quantizers write negative scales; the codes are then mirrored
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
    rounded = unit[:, None] * fine
    error = energy * (scale - rounded).square()
    ratio = scale / rounded.clamp(min=LEAST)
    loose = (ratio - 1).abs() * reach >= 0.5  # small scales in a coarse unit: other codes are closer here
    if loose.any():
        old, z, most = steps[loose].float(), zero[loose][:, None].float(), (127 / fine[loose]).floor()[:, None]
        new = (old * ratio[loose][:, None]).round().clamp(torch.maximum(-z, -most), torch.minimum(15 - z, most))
        error[loose] = (old * scale[loose][:, None] - new * rounded[loose][:, None]).square().sum(dim=1)
        steps[loose] = new.to(torch.int8)
    final = (steps + zero[..., None]).flatten(1)[:, :inputs]
    weight, groups = pack(final, fine, zero, size)
    total = (energy * scale.square()).double().sum().item()
    return weight, groups, unit, error.double().sum().item(), total


def _fit(scale: Tensor, reach: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """The unit of each output [outputs] and its multiples, 1..127 [outputs, groups], that approximate scales best.

    Each unit is tried with the nearest multiples, and refitted by least squares. `reach` is the largest distance of a
    group's codes from their zero, `energy` the sum of squares of these distances.
    """
    most = (127 / reach.clamp(min=1)).floor()
    top = scale.amax(dim=1).clamp(min=LEAST)
    scale = scale / top[:, None]
    finest = (scale / most).amax(dim=1).clamp(min=LEAST)
    best = torch.full_like(top, torch.inf)
    unit, fine = finest, torch.ones_like(scale)
    for stretch in STRETCHES:
        multiples = (scale / (finest * stretch)[:, None]).round().minimum(most)
        weighted = energy * multiples
        fitted = (weighted * scale).sum(dim=1) / (weighted * multiples).sum(dim=1).clamp(min=LEAST)
        error = (energy * (scale - fitted[:, None] * multiples).square()).sum(dim=1)
        better = error < best
        best, unit = torch.where(better, error, best), torch.where(better, fitted, unit)
        fine = torch.where(better[:, None], multiples, fine)
    return unit * top, fine.clamp(min=1)
