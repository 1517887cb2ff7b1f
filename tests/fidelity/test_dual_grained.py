"""Dual-grained quantization: the grids, bounds and percentile of the authors' code, and choices worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersely.kernels.quantization.dual_grained import (
    COARSE_GRID,
    FINE_GRID,
    OUTLIERS,
    code_bounds,
    outlier_scale,
    quantize_dual_grained,
)


def test_the_published_grids() -> None:
    """1.02 - 0.22 (i + 1) / 20 of a group's range, and 1.02 - 0.82 (i + 1) / 80 of an output's largest weight."""
    assert len(FINE_GRID) == 20 and len(COARSE_GRID) == 80
    assert (FINE_GRID[0], FINE_GRID[9], FINE_GRID[19]) == pytest.approx((1.009, 0.91, 0.80))
    assert (COARSE_GRID[0], COARSE_GRID[39], COARSE_GRID[79]) == pytest.approx((1.00975, 0.61, 0.20))


def test_codes_stay_within_eight_bits_of_their_zero() -> None:
    """floor(127 / fine) codes to either side: 127, 42, 8, 7 and 1 of them, within 0 to 15."""
    fine, zero = torch.tensor([1.0, 3, 15, 16, 127]), torch.tensor([7.0, 7, 7, 8, 4])
    lowest, highest = code_bounds(fine, zero)
    assert lowest.tolist() == [0, 0, 0, 1, 3]
    assert highest.tolist() == [15, 15, 15, 15, 5]


# -- the two phases, on one output with two groups of 32 inputs -------------------------------------------------------


def dequantize(weight: Tensor, fine_share: float, coarse_share: float) -> Tensor:
    """One output by the paper's formulas, a group at a time."""
    coarse = weight.abs().max() * coarse_share / 127
    parts = []
    for group in weight.split(32):
        low, high = group.min().clamp(max=0), group.max().clamp(min=0)
        scale = (high - low) * fine_share / 15
        zero = (-low * fine_share / scale).round().clamp(0, 15)
        fine = (scale / coarse).round().clamp(1, 127)
        most = (127 / fine).floor()
        code = ((group / (fine * coarse)).round() + zero).clamp((zero - most).clamp(min=0), (zero + most).clamp(max=15))
        parts.append(fine * coarse * (code - zero))
    return torch.cat(parts)


def fine_error(group: Tensor, share: float) -> Tensor:
    """The error of a group in phase one, where its scale is still a float."""
    low, high = group.min().clamp(max=0), group.max().clamp(min=0)
    scale = (high - low) * share / 15
    zero = (-low * share / scale).round().clamp(0, 15)
    code = ((group / scale).round() + zero).clamp(0, 15)
    return (scale * (code - zero) - group).square().sum()


@pytest.mark.parametrize("seed", [5, 9, 13])
def test_the_phases_choose_what_loses_least(seed: int) -> None:
    """All groups take the same share here, so the paper's search is two loops over its grids."""
    torch.manual_seed(seed)
    group = torch.distributions.StudentT(3.0).sample((32,))
    weight = torch.cat((group, group))
    fine_share = min(FINE_GRID, key=lambda share: float(fine_error(group, share)))
    errors = [float((dequantize(weight, fine_share, share) - weight).square().sum()) for share in COARSE_GRID]
    plain = float((dequantize(weight, 1.0, 1.0) - weight).square().sum())
    found = quantize_dual_grained(weight[None], 32)
    energy = float(weight.square().sum())
    assert fine_share < FINE_GRID[0], "the first is not the best"
    assert found.error == pytest.approx(min(errors) / energy, rel=1e-4)
    assert found.plain_error == pytest.approx(plain / energy, rel=1e-4)
    assert found.error < found.plain_error


# -- percentile clipping: int(0.005 n + 1.5) from the top keep their height -------------------------------------------


@pytest.mark.parametrize(("inputs", "rank"), [(10, 1), (99, 1), (100, 2), (1000, 6), (4096, 21)])
def test_the_percentile_counts_from_the_top(inputs: int, rank: int) -> None:
    highest = torch.arange(1, inputs + 1).float()
    scaled = outlier_scale(highest) * highest
    assert OUTLIERS == 0.005
    assert scaled.max().item() == pytest.approx(inputs + 1 - rank)
    assert (scaled < highest).sum() == rank - 1


def test_outlier_inputs_are_scaled_down() -> None:
    highest = torch.linspace(1, 2, 1000)
    highest[[3, 500]] = torch.tensor([40.0, 10.0])
    scale = outlier_scale(highest)
    # The six highest stand out; the height of the sixth is what all keep to.
    assert (scale < 1).sum() == 5
    assert (highest * scale).max().item() == pytest.approx(highest.sort().values[-6].item())
    assert scale[[3, 500]].tolist() == pytest.approx([1.997 / 40, 1.997 / 10], rel=1e-3)
    assert (outlier_scale(torch.zeros(10)) == 1).all()
    assert (outlier_scale(torch.tensor([5.0, 1, 1])) == 1).tolist() == [True, True, True]
