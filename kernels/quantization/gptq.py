"""GPTQ (arXiv:2210.17323) for dual-grained weights: each input's rounding error is compensated by the inputs after it.

The error of rounding one weight is reduced, as far as the correlation of the inputs allows, by changing the weights
that are not rounded yet. Both phases of DGQ's search take this into account. The range of a group is searched just
before the group is rounded, on its weights as changed by then, by the error that remains after all later groups have
compensated for it. The scale of an output is fitted to all its codes. Between fits, each code is improved given all
others (coordinate descent).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ModelError
from .dgq import FINE_GRID, LEAST, DualGrained, best_of, code_bounds, quantize_dual_grained

DAMPING = 0.01
"""Share of the inputs' mean energy that is added to the diagonal, so that the matrix can be inverted."""
PASSES = 3
"""How many times all codes are improved."""
_BLOCK = 128  # inputs after which the errors of all others are updated


def quantize_gptq(weight: Tensor, size: int, gram: Tensor, *, search: bool = True) -> DualGrained:
    """Quantize a weight matrix [outputs, inputs] with compensation, in groups of `size` inputs.

    Outputs that compensation does not improve are rounded plainly. Errors are those of all inputs together.

    Args:
        weight: the matrix.
        size: inputs per group.
        gram: inner products of all inputs, float32 [inputs, inputs].
        search: whether ranges are searched; without, they are full.

    Raises:
        ModelError: `gram` contains NaN or infinity.
    """
    weight, order = weight.float(), _order(gram.diagonal(), size)
    plain = quantize_dual_grained(weight, size, search=False)
    columns, coarse = torch.cat(order), plain.channel_scale
    damped, factor = _factorize(gram[columns][:, columns])
    sizes = [len(inputs) for inputs in order]
    sorted_weight = weight[:, columns]
    codes, fine, zero = _sweep(sorted_weight.clone(), sizes, factor, coarse, FINE_GRID if search else (1.0,))
    for _ in range(PASSES):
        _descend(codes, coarse, fine, zero, sorted_weight, damped)
        if search:
            coarse = fit_coarse(codes, coarse, fine, zero, sorted_weight, damped)
    codes, fine, zero = (t[:, columns.argsort()].to(torch.uint8) for t in (codes, fine, zero))
    result = replace(
        plain, codes=codes, fine=fine[:, ::size].contiguous(), zero=zero[:, ::size].contiguous(), channel_scale=coarse
    )
    return _choose_better(weight, size, gram, plain, result)


def _sweep(
    weight: Tensor, sizes: list[int], factor: Tensor, coarse: Tensor, grid: Iterable[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, fine scales and zeros of weights [outputs, inputs], one group of inputs after the other.

    Compensation changes `weight` in place.
    """
    codes, fine, zero = (torch.empty_like(weight) for _ in range(3))
    start = 0
    for size in sizes:
        here = slice(start, start + size)
        block = factor[here, here]
        scale, shift = search_range(weight[:, here], torch.cholesky_inverse(block.T.contiguous()), coarse, grid)
        fine[:, here], zero[:, here] = scale[:, None], shift[:, None]
        codes[:, here], errors = _round_group(weight[:, here], block, scale, shift, coarse)
        weight[:, here.stop :] -= errors @ factor[here, here.stop :]
        start = here.stop
    return codes, fine, zero


def _choose_better(weight: Tensor, size: int, gram: Tensor, plain: DualGrained, result: DualGrained) -> DualGrained:
    """For each output, the version with the lower error."""
    before, after = output_errors(weight, size, gram, plain), output_errors(weight, size, gram, result)
    energy, better = _cost(weight, gram).sum().clamp(min=1e-30), after < before

    def choose(ours: Tensor, other: Tensor) -> Tensor:
        return torch.where(better.view(-1, *(1,) * (ours.ndim - 1)), ours, other)

    return DualGrained(
        choose(result.codes, plain.codes),
        choose(result.fine, plain.fine),
        choose(result.zero, plain.zero),
        choose(result.channel_scale, plain.channel_scale),
        error=float(torch.minimum(before, after).sum() / energy),
        plain_error=float(before.sum() / energy),
    )


def output_errors(weight: Tensor, size: int, gram: Tensor, result: DualGrained) -> Tensor:
    """The squared error of each output of a quantized matrix, float32 [outputs]."""
    fine, zero = (t.repeat_interleave(size, dim=1)[:, : weight.shape[1]].float() for t in (result.fine, result.zero))
    return _cost((result.codes - zero) * fine * result.channel_scale[:, None] - weight, gram)


def _cost(rows: Tensor, gram: Tensor) -> Tensor:
    return (rows @ gram).mul_(rows).sum(dim=1)


def _order(energy: Tensor, size: int) -> list[Tensor]:
    """The inputs of each group, in descending energy, as are the groups: the important ones are rounded first."""
    groups = torch.arange(len(energy)).split(size)
    ranked = sorted(groups, key=lambda inputs: -float(energy[inputs].mean()))
    return [inputs[energy[inputs].argsort(descending=True, stable=True)] for inputs in ranked]


def _factorize(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with as much damping as needed, and the upper Cholesky factor of its inverse; raises ModelError."""
    if not bool(gram.isfinite().all()):
        raise ModelError(
            "a layer's inputs on the calibration text are NaN or infinite; check the checkpoint and its dtype",
            code="inputs_not_finite",
        )
    mean, damping = gram.diagonal().mean().clamp(min=1e-30), DAMPING
    while True:
        damped = gram + damping * mean * torch.eye(len(gram))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return damped, factor
        damping *= 10


def search_range(part: Tensor, gram: Tensor, coarse: Tensor, grid: Iterable[float]) -> Sequence[Tensor]:
    """The best fine scale and zero, both [outputs], of a group of weights [outputs, inputs]."""
    low, high = part.amin(dim=1).clamp(max=0), part.amax(dim=1).clamp(min=0)

    def attempt(share: float) -> Sequence[Tensor]:
        fine = ((high - low) * share / 15 / coarse).round().clamp_(1, 127)
        zero = (-low * share / (fine * coarse)).round().clamp_(0, 15)
        lowest, highest = code_bounds(fine, zero)
        unit = (fine * coarse)[:, None]
        codes = (part / unit).round_().add_(zero[:, None]).clamp_(lowest[:, None], highest[:, None])
        return _cost(codes.sub_(zero[:, None]).mul_(unit).sub_(part), gram), fine, zero

    return best_of(map(attempt, grid))[1:]


def _round_group(part: Tensor, factor: Tensor, fine: Tensor, zero: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of one group's weights [outputs, inputs], and the errors that later groups compensate."""
    codes, errors, unit = torch.empty_like(part), torch.empty_like(part), fine * coarse
    lowest, highest = code_bounds(fine, zero)
    for i in range(part.shape[1]):
        code = (part[:, i] / unit).round_().add_(zero).clamp_(lowest, highest)
        errors[:, i] = (part[:, i] - (code - zero) * unit) / factor[i, i]
        part[:, i + 1 :] -= errors[:, i, None] * factor[i, i + 1 :]
        codes[:, i] = code
    return codes, errors


def _descend(codes: Tensor, coarse: Tensor, fine: Tensor, zero: Tensor, weight: Tensor, gram: Tensor) -> None:
    """Change each code once, in place, to the best value given all other codes of its output."""
    lowest, highest = code_bounds(fine, zero)
    energy, unit = gram.diagonal(), fine * coarse[:, None]
    slope = (weight - (codes - zero) * unit) @ gram
    for start in range(0, codes.shape[1], _BLOCK):
        here = slice(start, start + _BLOCK)
        near, block, steps = slope[:, here].clone(), gram[here, here], torch.empty_like(slope[:, here])
        for i in range(near.shape[1]):
            j = start + i
            code = (near[:, i] / energy[j] / unit[:, j]).round_().add_(codes[:, j])
            code = code.clamp_(lowest[:, j], highest[:, j])
            steps[:, i] = (code - codes[:, j]) * unit[:, j]
            codes[:, j] = code
            near -= steps[:, i, None] * block[i]
        slope -= steps @ gram[here]


def fit_coarse(codes: Tensor, coarse: Tensor, fine: Tensor, zero: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """The best scale of each output given its codes: least squares in one variable."""
    integers = (codes - zero) * fine
    outputs = integers @ gram
    energy = (outputs * integers).sum(dim=1)
    return torch.where(energy > 0, (outputs * weight).sum(dim=1) / energy, coarse).clamp(min=LEAST)
