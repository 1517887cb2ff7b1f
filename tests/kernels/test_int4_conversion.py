"""Conversion of other methods' int4 weights: errors and group sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tersely.errors import ModelError
from tersely.kernels.quantization.int4 import choose_group_size, repack
from tersely.kernels.w4a8 import w4a8_linear
from tersely.kernels.w4a8_layout import unpack

SHAPES = ((16, 128, 32), (48, 320, 64), (80, 896, 128), (32, 512, 256), (32, 264, -1), (16, 96, 96))


def words_of(codes: Tensor, axis: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack eight codes along an axis into an int32; order: positions from the lowest bits."""
    eights = codes.movedim(axis, -1).unflatten(-1, (-1, 8))[..., list(order)]
    packed = sum(eights[..., i].numpy().astype(np.uint32) << np.uint32(4 * i) for i in range(8))
    return torch.from_numpy(np.ascontiguousarray(packed).view(np.int32)).movedim(-1, axis).contiguous()


def random_int4(outputs: int, inputs: int, size: int, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of a rounded layer with some large weights."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randn(outputs, inputs, generator=generator) * torch.rand(outputs, 1, generator=generator)
    return rounded(weight, inputs if size == -1 else size, zeros)


def rounded(weight: Tensor, size: int, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    groups = weight.float().unflatten(1, (-1, size))
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scale = ((high - low) / 15 if zeros else groups.abs().amax(dim=2) / 7.5).clamp(min=1e-6).bfloat16().float()
    zero = (-low / scale).round().clamp(0, 15) if zeros else torch.full_like(scale, 8)
    codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, 15)
    return codes.flatten(1).to(torch.uint8), scale, zero.to(torch.uint8)


def dense(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The dequantized weights of a checkpoint."""
    steps: Tensor = codes.float().unflatten(1, (scale.shape[1], -1)) - zero[..., None]
    return (steps * scale[..., None]).flatten(1)


def moved(weight: Tensor, made: Any) -> float:
    """Relative error of repacked weights."""
    ours = unpack(made.weight, made.groups)[: len(weight), : weight.shape[1]] * made.channel_scale[:, None]
    return float((ours - weight).norm() / weight.norm())


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("outputs", "inputs", "size"), SHAPES, ids=str)
def test_repacked_layers_compute_the_same(outputs: int, inputs: int, size: int, zeros: bool) -> None:
    codes, scale, zero = random_int4(outputs, inputs, size, zeros)
    weight, made = dense(codes, scale, zero), repack(words_of(codes, 1), scale, zero, size)
    assert moved(weight, made) == pytest.approx(made.error, rel=1e-3, abs=1e-6)
    assert made.error < (1e-6 if scale.shape[1] == 1 else 0.045)
    for rows in (1, 3, 7):
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
        out, expected = w4a8_linear(x, made.weight, made.groups, made.channel_scale), x @ weight.T
        assert (out - expected).norm() < (made.error * 1.5 + 0.012) * expected.norm()  # 8 bits of activations: 0.8 %


def test_scales_change_by_at_most_half_a_unit() -> None:
    codes, scale, zero = random_int4(64, 1024, 128, False)
    made = repack(words_of(codes, 1), scale, zero, 128)
    fine = made.groups[:, :, 0].permute(0, 2, 1).flatten(0, 1).float()
    unit = made.channel_scale[:, None]
    assert (((fine * unit - scale) / unit).abs() < 0.55).all() and fine.max() <= 18  # the unit is fitted after rounding
    whole = unpack(made.weight, made.groups).unflatten(1, (8, -1))
    assert torch.equal(whole, (codes.to(torch.int8) - 8).unflatten(1, (8, -1)) * fine[..., None].to(torch.int8))


def test_negative_zero_and_extreme_scales() -> None:
    codes, scale, zero = random_int4(32, 256, 32, True)
    scale[:, 1] *= -1
    scale[:, 2] = 0
    scale[:, 3] *= 0.01
    scale[5] = 0
    weight, made = dense(codes, scale, zero), repack(words_of(codes, 1), scale, zero, 32)
    assert moved(weight, made) == pytest.approx(made.error, rel=1e-3)
    assert made.error < 0.06
    ours = unpack(made.weight, made.groups)[:32, :256] * made.channel_scale[:, None]
    assert not ours[:, 64:96].any() and not ours[5].any()
    top = weight.abs().amax(dim=1, keepdim=True)
    assert ((ours - weight).abs() <= 0.08 * top + 1e-6).all()
    scale[3, 3] = torch.nan
    with pytest.raises(ModelError):
        repack(words_of(codes, 1), scale, zero, 32)


def test_group_sizes() -> None:
    sizes = {(128, 256): 128, (64, 256): 64, (96, 192): 32, (256, 512): 128, (-1, 40): 128, (512, 512): 128}
    assert {key: choose_group_size(*key) for key in sizes} == sizes
    assert [choose_group_size(*key) for key in ((16, 64), (48, 96), (128, 320), (0, 64), (-2, 64))] == [None] * 5
