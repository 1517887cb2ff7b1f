"""Quantization of one matrix: search, compensation, 8 bits, outlier inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersely.errors import ModelError
from tersely.kernels.quantization.dual_grained import (
    FINE_GRID,
    DualGrained,
    code_bounds,
    fit_coarse,
    output_errors,
    quantize_dual_grained,
    quantize_gptq,
    quantize_int8,
    search_range,
)

from ..support.refusals import refused


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def weight_of(found: DualGrained, size: int) -> Tensor:
    fine, zero = (t.repeat_interleave(size, 1)[:, : found.codes.shape[1]].float() for t in (found.fine, found.zero))
    return found.channel_scale[:, None] * fine * (found.codes.float() - zero)


@pytest.mark.parametrize(("outputs", "inputs", "size"), [(7, 64, 32), (20, 200, 64), (33, 129, 128), (4, 5, 32)])
def test_codes_and_scales_are_in_range(outputs: int, inputs: int, size: int) -> None:
    weight = torch.randn(outputs, inputs) * torch.logspace(-3, 3, outputs)[:, None]
    weight[0, 0] = 100
    found = quantize_dual_grained(weight, size)
    assert found.codes.shape == weight.shape
    assert found.fine.shape == found.zero.shape == (outputs, -(-inputs // size))
    assert found.codes.max() <= 15
    assert found.zero.max() <= 15
    assert found.fine.min() >= 1 and found.fine.max() <= 127
    fine, zero = (t.repeat_interleave(size, 1)[:, :inputs].int() for t in (found.fine, found.zero))
    assert (fine * (found.codes.int() - zero)).abs().max() <= 127
    wrong = (weight_of(found, size) - weight).square().sum() / weight.square().sum()
    assert found.error == pytest.approx(wrong.item(), rel=1e-3)


def test_error_is_relative_to_the_outputs() -> None:
    x = torch.randn(300, 64) @ torch.randn(64, 64)
    weight = torch.randn(10, 64)
    found = quantize_dual_grained(weight, 64, (x.T @ x)[None])
    wrong = (x @ (weight_of(found, 64) - weight).T).square().sum() / (x @ weight.T).square().sum()
    assert found.error == pytest.approx(wrong.item(), rel=1e-3)


def test_search_beats_plain_rounding() -> None:
    x = torch.randn(300, 128) * torch.logspace(-1, 1, 128)
    weight = torch.distributions.StudentT(3.0).sample((40, 128))
    gram = torch.stack([part.T @ part for part in x.split(64, dim=1)])
    for given in (None, gram):
        found = quantize_dual_grained(weight, 64, given)
        assert found.error < 0.95 * found.plain_error
    blind = weight_of(quantize_dual_grained(weight, 64), 64) - weight
    seeing = weight_of(quantize_dual_grained(weight, 64, gram), 64) - weight
    assert (x @ seeing.T).square().sum() < 0.9 * (x @ blind.T).square().sum()


@pytest.mark.parametrize(("inputs", "size", "found_by_search"), [(128, 64, 0.88), (150, 64, 0.88), (96, 128, 0.75)])
def test_compensation_reduces_the_error(inputs: int, size: int, found_by_search: float) -> None:
    mixed = torch.randn(inputs, inputs) * torch.logspace(-1, 1, inputs)
    x, weight = torch.randn(2000, inputs) @ mixed, torch.randn(24, inputs)
    weight[5] = 0
    gram, found = x.T @ x, quantize_dual_grained(weight, size, search=False)
    made, full = quantize_gptq(weight, size, gram), quantize_gptq(weight, size, gram, search=False)

    def wrong(one: DualGrained) -> Tensor:
        return (x @ (weight_of(one, size) - weight).T).square().sum(dim=0)

    assert wrong(made).sum() < 0.5 * wrong(found).sum()
    assert (wrong(made) <= wrong(found) * 1.001).all()
    assert made.error == pytest.approx(float(wrong(made).sum() / (x @ weight.T).square().sum()), rel=1e-2)
    assert made.error < 0.5 * made.plain_error
    assert made.error < found_by_search * full.error, "the search of ranges sees what compensation will do"
    assert torch.equal(full.channel_scale, found.channel_scale)
    assert (made.channel_scale != found.channel_scale).sum() > 12
    fine, zero = (t.repeat_interleave(size, 1)[:, :inputs].int() for t in (made.fine, made.zero))
    assert (fine * (made.codes.int() - zero)).abs().max() <= 127
    assert made.codes.max() <= 15 and fine.min() >= 1
    torch.testing.assert_close(output_errors(weight, size, gram, made), wrong(made), rtol=1e-3, atol=1e-2)
    # Inputs that never occur, and few tokens for many inputs: the matrix is singular.
    few = x[:3].T @ x[:3]
    few[7] = few[:, 7] = 0
    assert quantize_gptq(weight, size, few).error <= float(
        output_errors(weight, size, few, found).sum() / (weight @ few * weight).sum()
    )
    assert quantize_gptq(weight, size, torch.zeros_like(gram)).error == 0
    few[3, 4] = float("nan")
    with refused(ModelError, "inputs_not_finite"):
        quantize_gptq(weight, size, few)


def test_each_part_of_the_search_is_optimal() -> None:
    mixed = torch.randn(96, 96) * torch.logspace(-1, 1, 96)
    x, weight = torch.randn(2000, 96) @ mixed, torch.randn(24, 96)
    gram, coarse = x.T @ x, torch.full((24,), 0.02)
    # The scale of an output: a little more or less loses more.
    found = quantize_dual_grained(weight, 32, search=False)
    codes, fine, zero = found.codes.float(), *(t.repeat_interleave(32, 1).float() for t in (found.fine, found.zero))
    fitted = fit_coarse(codes, found.channel_scale, fine, zero, weight, gram)

    def cost(scale: Tensor) -> Tensor:
        wrong = (codes - zero) * fine * scale[:, None] - weight
        return ((wrong @ gram) * wrong).sum(1)

    assert (cost(fitted) < torch.minimum(cost(fitted * 1.01), cost(fitted * 0.99))).all()
    assert cost(fitted).sum() < 0.99 * cost(found.channel_scale).sum()
    # A range: of all that are tried it loses least by the sums that it is given.
    part, sums = weight[:, :32], gram[:32, :32]

    def lost(scale: Tensor, shift: Tensor) -> Tensor:
        lowest, highest = code_bounds(scale, shift)
        unit = (scale * coarse)[:, None]
        near = (part / unit).round().add(shift[:, None]).clamp(lowest[:, None], highest[:, None])
        wrong = (near - shift[:, None]) * unit - part
        return ((wrong @ sums) * wrong).sum(1)

    best = lost(*search_range(part, sums, coarse, FINE_GRID))
    each = torch.stack([lost(*search_range(part, sums, coarse, (ratio,))) for ratio in FINE_GRID])
    torch.testing.assert_close(best, each.amin(0))
    assert (best < 0.99 * lost(*search_range(part, torch.eye(32), coarse, FINE_GRID))).sum() > 5, (
        "it is those that decide"
    )


def test_without_a_search_ranges_are_full() -> None:
    weight = torch.distributions.StudentT(3.0).sample((40, 128))
    found = quantize_dual_grained(weight, 64, search=False)
    assert found.error == found.plain_error == pytest.approx(quantize_dual_grained(weight, 64).plain_error)


def test_degenerate_matrices() -> None:
    zeros = quantize_dual_grained(torch.zeros(3, 40), 32)
    assert zeros.error == 0
    assert (weight_of(zeros, 32) == 0).all()
    weight = torch.stack((torch.ones(64), -torch.ones(64), torch.zeros(64)))
    weight[2, 5] = 3
    found = quantize_dual_grained(weight, 32)
    torch.testing.assert_close(weight_of(found, 32), weight, rtol=0.02, atol=0)


def test_eight_bits() -> None:
    weight = torch.randn(50, 30)
    weight[3] = 0
    whole, scale = quantize_int8(weight)
    assert whole.dtype == torch.int8
    assert whole.abs().amax(dim=1).tolist() == [0 if row == 3 else 127 for row in range(50)]
    assert ((whole * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
