"""Dual-grained quantization of one weight matrix: what each code, zero and scale is, found by a search in two phases.

DGQ (arXiv:2310.04836) searches each group of inputs for the range that its 4 bits should span, then each output for the
coarse scale of which the groups' fine scales are whole multiples; both by the error of the layer's output on what its
inputs were. Inputs that stand out are scaled down before, and their weights up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FINE_GRID = tuple(1.02 - 0.22 * (i + 1) / 20 for i in range(20))
"""Shares of a group's range that phase one tries."""
COARSE_GRID = tuple(1.02 - 0.82 * (i + 1) / 80 for i in range(80))
"""Shares of an output's highest weight that phase two tries."""
OUTLIERS = 0.005
"""Share of the inputs that count as standing out."""
_AT_ONCE = 1 << 18  # weights worked on at a time: what stays in the caches
LEAST = 1e-30
"""Scales below are none: all weights are zeros."""


@dataclass(frozen=True, slots=True)
class DualGrained:
    """A matrix [outputs, inputs] in two grains; weight = channel_scale * fine * (code - zero)."""

    codes: Tensor
    """uint8 [outputs, inputs], 0..15."""
    fine: Tensor
    """uint8 [outputs, groups], 1..127; times (code - zero) it fits into 8 bits."""
    zero: Tensor
    """uint8 [outputs, groups], 0..15."""
    channel_scale: Tensor
    """float32 [outputs]."""
    error: float
    """Squared error of the outputs, as a share of their square."""
    plain_error: float
    """The same of full ranges, rounded without a search."""


def dual_grained(weight: Tensor, size: int, gram: Tensor | None = None, *, search: bool = True) -> DualGrained:
    """Quantize a weight matrix [outputs, inputs] in groups of `size` inputs.

    gram: sums of products of inputs within each group, float32 [groups, size, size]; None counts all inputs alike. An
    output for which the search, one phase after the other, finds nothing better keeps its full ranges, and so do all
    without a search.
    """
    outputs, inputs = weight.shape
    rows_at_once = max(1, _AT_ONCE // inputs)
    parts, wrong, plainly_wrong, whole = [], 0.0, 0.0, 0.0
    for start in range(0, outputs, rows_at_once):
        rows = weight[start : start + rows_at_once].float()
        rows = F.pad(rows, (0, -inputs % size)).unflatten(1, (-1, size)).transpose(0, 1).contiguous()
        plain = _coarse(rows, *_fine(rows, gram, (1.0,)), gram, (1.0,))
        found = _coarse(rows, *_fine(rows, gram, FINE_GRID), gram, COARSE_GRID) if search else plain
        better = found[-1] < plain[-1]  # outputs are the last dimension of all of them
        *part, error = (torch.where(better, a, b) for a, b in zip(found, plain, strict=True))
        parts.append(part)
        wrong += error.double().sum().item()
        plainly_wrong += plain[-1].double().sum().item()
        whole += _cost(rows, gram).double().sum().item()
    codes, fine, zero, channel_scale = (torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True))
    codes = codes.permute(2, 0, 1).flatten(1)[:, :inputs].contiguous()
    fine, zero = fine.T.contiguous(), zero.T.contiguous()
    whole = whole or 1.0
    return DualGrained(codes, fine, zero, channel_scale, wrong / whole, plainly_wrong / whole)


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight matrix as int8 [outputs, inputs] and what a unit of each output is worth, float32 [outputs]."""
    scale = weight.abs().amax(dim=1).float() / 127
    whole = [
        (weight[i : i + 4096].float() / scale[i : i + 4096, None].clamp(min=LEAST)).round().clamp_(-127, 127)
        for i in range(0, len(weight), 4096)
    ]
    return torch.cat([rows.to(torch.int8) for rows in whole]), scale


def input_scale(highest: Tensor) -> Tensor:
    """What each input is to be multiplied by, float32 [inputs], from how high it was.

    Inputs that were higher than all but the highest half per cent are brought down to that height (percentile
    clipping); the others stay as they are. So the one scale that a row of activations has is not spent on a few inputs.
    """
    rank = min(len(highest), int(len(highest) * OUTLIERS + 1.5))
    height = highest.float().sort(descending=True).values[rank - 1]
    above = (highest > height) & (height > 0)
    return torch.where(above, height / highest.float().clamp(min=LEAST), 1.0)


def code_bounds(fine: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest code for which a fine scale times (code - zero) fits into 8 bits."""
    most = (127 / fine).floor()
    return (zero - most).clamp_(min=0), (zero + most).clamp_(max=15)


def _fine(rows: Tensor, gram: Tensor | None = None, grid: Iterable[float] = FINE_GRID) -> tuple[Tensor, Tensor]:
    """Phase one: scale and zero of each group, both [groups, outputs], for rows [groups, outputs, size]."""
    low, high = rows.amin(dim=2).clamp(max=0), rows.amax(dim=2).clamp(min=0)
    best = scale = zero = None
    for ratio in grid:
        s = ((high - low) * ratio / 15).clamp(min=LEAST)
        z = (-low * ratio / s).round().clamp_(0, 15)
        codes = (rows / s[..., None]).round_().add_(z[..., None]).clamp_(0, 15)
        error = _cost(codes.sub_(z[..., None]).mul_(s[..., None]).sub_(rows), gram)
        if best is None or scale is None or zero is None:
            best, scale, zero = error, s, z
            continue
        better = error < best
        best, scale, zero = (torch.where(better, a, b) for a, b in ((error, best), (s, scale), (z, zero)))
    assert scale is not None and zero is not None
    return scale, zero


def _coarse(
    rows: Tensor, scale: Tensor, zero: Tensor, gram: Tensor | None, grid: Iterable[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Phase two: codes, fine scales, zeros, the scale of each output, and its error [outputs]."""
    highest = rows.abs().amax(dim=(0, 2))
    best = coarse = None
    for ratio in grid:
        c = (highest * ratio / 127).clamp(min=LEAST)
        codes, _, unit = _rounded(rows, scale, zero, c)
        error = _cost(codes.sub_(zero[..., None]).mul_(unit).sub_(rows), gram).sum(dim=0)
        if best is None or coarse is None:
            best, coarse = error, c
            continue
        better = error < best
        best, coarse = torch.where(better, error, best), torch.where(better, c, coarse)
    assert best is not None and coarse is not None
    codes, fine, _ = _rounded(rows, scale, zero, coarse)
    return codes.to(torch.uint8).transpose(1, 2), fine.to(torch.uint8), zero.to(torch.uint8), coarse, best


def _rounded(rows: Tensor, scale: Tensor, zero: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and fine scales that belong to scales of the outputs, and what a unit of each code is then worth."""
    fine = (scale / coarse).round().clamp_(1, 127)
    lowest, highest = code_bounds(fine, zero)
    unit = (fine * coarse)[..., None]
    codes = (rows / unit).round_().add_(zero[..., None]).clamp_(lowest[..., None], highest[..., None])
    return codes, fine, unit


def _cost(rows: Tensor, gram: Tensor | None) -> Tensor:
    """The square of what rows [groups, outputs, size] make of the inputs, for each group [groups, outputs]."""
    if gram is None:
        return rows.square().sum(dim=2)
    return torch.bmm(rows, gram).mul_(rows).sum(dim=2)
