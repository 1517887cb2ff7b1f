"""Dual-grained quantization of one weight matrix (DGQ, arXiv:2310.04836), by a search in two phases.

Phase one searches, for each group of inputs, the range that its 4-bit codes span. Phase two searches, for each output,
the coarse scale of which the groups' fine scales are integer multiples. Both minimize the error of the layer's output
on the calibration inputs.

`quantize_gptq` also lets the inputs after a rounded one compensate its error (GPTQ, arXiv:2210.17323). The range of a
group is searched on its weights as changed by then, by the error that remains after later groups have compensated for
it; the scale of an output is fitted to all its codes, and between fits each code is improved given all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ModelError

FINE_GRID = tuple(1.02 - 0.22 * (i + 1) / 20 for i in range(20))  # phase one: the shares of a group's range to try
COARSE_GRID = tuple(1.02 - 0.82 * (i + 1) / 80 for i in range(80))
"""Phase two: the shares of an output's largest weight to try."""
OUTLIERS = 0.005  # the share of inputs that count as outliers
LEAST = 1e-30  # lower bound of scales, for weights that are all zero
DAMPING = 0.01  # share of the inputs' mean energy that is added to the diagonal, so that the matrix can be inverted
PASSES = 3  # how many times all codes are improved
_AT_ONCE = 1 << 18  # weights per step, so that they stay in the caches
_BLOCK = 128  # inputs after which the errors of all others are updated


@dataclass(frozen=True, slots=True)
class DualGrained:
    """A quantized matrix [outputs, inputs]: weight = channel_scale * fine * (code - zero)."""

    codes: Tensor  # uint8 [outputs, inputs], 0..15
    fine: Tensor  # uint8 [outputs, groups], 1..127; its product with (code - zero) fits into 8 bits
    zero: Tensor  # uint8 [outputs, groups], 0..15
    channel_scale: Tensor  # float32 [outputs]
    error: float  # squared error of the outputs, relative to their square
    plain_error: float  # the same for plain rounding: full ranges, no search


def quantize_dual_grained(weight: Tensor, size: int, gram: Tensor | None = None, *, search: bool = True) -> DualGrained:
    """Quantize a weight matrix [outputs, inputs] in groups of `size` inputs.

    `gram` are inner products of the inputs within groups, float32 [groups, size, size]; None weights all inputs
    equally. With `search`, ranges are searched; outputs that do not improve keep their full ranges.
    """
    outputs, inputs = weight.shape
    rows_at_once = max(1, _AT_ONCE // inputs)
    parts, error, plain_error, energy = [], 0.0, 0.0, 0.0
    for start in range(0, outputs, rows_at_once):
        rows = weight[start : start + rows_at_once].float()
        rows = F.pad(rows, (0, -inputs % size)).unflatten(1, (-1, size)).transpose(0, 1).contiguous()
        plain = _search(rows, gram, (1.0,), (1.0,))
        searched = _search(rows, gram, FINE_GRID, COARSE_GRID) if search else plain
        part_error, *part = best_of((plain, searched))
        parts.append(part)
        error += part_error.double().sum().item()
        plain_error += plain[0].double().sum().item()
        energy += _cost(rows, gram).double().sum().item()
    codes, fine, zero, channel_scale = (torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True))
    codes = codes.permute(2, 0, 1).flatten(1)[:, :inputs].contiguous()
    fine, zero, energy = fine.T.contiguous(), zero.T.contiguous(), energy or 1.0
    return DualGrained(codes, fine, zero, channel_scale, error / energy, plain_error / energy)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight matrix to int8 [outputs, inputs] with one scale per output, float32 [outputs]."""
    scale = weight.abs().amax(dim=1).float() / 127
    parts = [
        (weight[i : i + 4096].float() / scale[i : i + 4096, None].clamp(min=LEAST)).round().clamp_(-127, 127)
        for i in range(0, len(weight), 4096)
    ]
    return torch.cat([rows.to(torch.int8) for rows in parts]), scale


def outlier_scale(highest: Tensor) -> Tensor:
    """What to multiply each input by, float32 [inputs], given its largest magnitude (percentile clipping).

    The highest half per cent are scaled down to the magnitude below them, so that they do not use up a row's range.
    """
    rank = min(len(highest), int(len(highest) * OUTLIERS + 1.5))
    limit = highest.float().sort(descending=True).values[rank - 1]
    above = (highest > limit) & (limit > 0)
    return torch.where(above, limit / highest.float().clamp(min=LEAST), 1.0)


def code_bounds(fine: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest code for which fine * (code - zero) fits into 8 bits."""
    most = (127 / fine).floor()
    return (zero - most).clamp_(min=0), (zero + most).clamp_(max=15)


def best_of(candidates: Iterable[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Choose, elementwise, among candidates (error, *tensors) the one with the lowest error; the first on a tie."""
    best: Sequence[Tensor] | None = None
    for candidate in candidates:
        if best is None:
            best = candidate
            continue
        better = candidate[0] < best[0]
        best = [torch.where(better, a, b) for a, b in zip(candidate, best, strict=True)]
    assert best is not None
    return best


def _search(
    rows: Tensor, gram: Tensor | None, fine_grid: Iterable[float], coarse_grid: Iterable[float]
) -> Sequence[Tensor]:
    """Both phases: the error [outputs], codes, fine scales, zeros, and the scale of each output."""
    scale, zero = _search_fine(rows, gram, fine_grid)
    error, coarse = _search_coarse(rows, scale, zero, gram, coarse_grid)
    codes, fine, _ = _round(rows, scale, zero, coarse)
    return error, codes.to(torch.uint8).transpose(1, 2), fine.to(torch.uint8), zero.to(torch.uint8), coarse


def _search_fine(rows: Tensor, gram: Tensor | None, grid: Iterable[float]) -> Sequence[Tensor]:
    """Phase one: scale and zero of each group, both [groups, outputs], for rows [groups, outputs, size]."""
    low, high = rows.amin(dim=2).clamp(max=0), rows.amax(dim=2).clamp(min=0)

    def attempt(share: float) -> Sequence[Tensor]:
        scale = ((high - low) * share / 15).clamp(min=LEAST)
        zero = (-low * share / scale).round().clamp_(0, 15)
        codes = (rows / scale[..., None]).round_().add_(zero[..., None]).clamp_(0, 15)
        return _cost(codes.sub_(zero[..., None]).mul_(scale[..., None]).sub_(rows), gram), scale, zero

    return best_of(map(attempt, grid))[1:]


def _search_coarse(
    rows: Tensor, scale: Tensor, zero: Tensor, gram: Tensor | None, grid: Iterable[float]
) -> Sequence[Tensor]:
    """Phase two: the error and the scale of each output, both [outputs]."""
    highest = rows.abs().amax(dim=(0, 2))

    def attempt(share: float) -> Sequence[Tensor]:
        coarse = (highest * share / 127).clamp(min=LEAST)
        codes, _, unit = _round(rows, scale, zero, coarse)
        return _cost(codes.sub_(zero[..., None]).mul_(unit).sub_(rows), gram).sum(dim=0), coarse

    return best_of(map(attempt, grid))


def _round(rows: Tensor, scale: Tensor, zero: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, fine scales, and the value of one step of each code, given the scales of the outputs."""
    fine = (scale / coarse).round().clamp_(1, 127)
    lowest, highest = code_bounds(fine, zero)
    unit = (fine * coarse)[..., None]
    codes = (rows / unit).round_().add_(zero[..., None]).clamp_(lowest[..., None], highest[..., None])
    return codes, fine, unit


def _cost(rows: Tensor, gram: Tensor | None) -> Tensor:
    """The squared output of rows [groups, outputs, size] on the inputs, for each group: [groups, outputs]."""
    if gram is None:
        return rows.square().sum(dim=2)
    return torch.bmm(rows, gram).mul_(rows).sum(dim=2)


def quantize_gptq(weight: Tensor, size: int, gram: Tensor, *, search: bool = True) -> DualGrained:
    """Quantize a weight matrix [outputs, inputs] with compensation, in groups of `size` inputs.

    `gram` are inner products of all inputs, float32 [inputs, inputs]; raises ModelError for NaN or infinity. Without
    `search`, ranges are full. Outputs that compensation does not improve are rounded plainly.
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
    """Codes, fine scales and zeros of weights [outputs, inputs], group after group; changes `weight` in place."""
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
    energy, better = _total_cost(weight, gram).sum().clamp(min=LEAST), after < before

    def choose(name: str) -> Tensor:
        ours, other = getattr(result, name), getattr(plain, name)
        return torch.where(better.view(-1, *(1,) * (ours.ndim - 1)), ours, other)

    tensors = {name: choose(name) for name in ("codes", "fine", "zero", "channel_scale")}
    error, plain_error = torch.minimum(before, after).sum() / energy, before.sum() / energy
    return DualGrained(**tensors, error=float(error), plain_error=float(plain_error))


def output_errors(weight: Tensor, size: int, gram: Tensor, result: DualGrained) -> Tensor:
    """The squared error of each output of a quantized matrix, float32 [outputs]."""
    fine, zero = (t.repeat_interleave(size, dim=1)[:, : weight.shape[1]].float() for t in (result.fine, result.zero))
    return _total_cost((result.codes - zero) * fine * result.channel_scale[:, None] - weight, gram)


def _total_cost(rows: Tensor, gram: Tensor) -> Tensor:
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
    mean, damping = gram.diagonal().mean().clamp(min=LEAST), DAMPING
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
        return _total_cost(codes.sub_(zero[:, None]).mul_(unit).sub_(part), gram), fine, zero

    return best_of(map(attempt, grid))[1:]


def _round_group(part: Tensor, factor: Tensor, fine: Tensor, zero: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of one group's weights [outputs, inputs], and the errors that later groups compensate."""
    rest, unit = part.T.contiguous(), fine * coarse  # by inputs, so that each is contiguous
    codes, errors = torch.empty_like(rest), torch.empty_like(rest)
    lowest, highest = code_bounds(fine, zero)
    for i, row in enumerate(factor):
        codes[i] = (rest[i] / unit).round_().add_(zero).clamp_(lowest, highest)
        errors[i] = (rest[i] - (codes[i] - zero) * unit) / row[i]
        rest[i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
    return codes.T, errors.T


def _descend(codes: Tensor, coarse: Tensor, fine: Tensor, zero: Tensor, weight: Tensor, gram: Tensor) -> None:
    """Change each code once, in place, to the best value given all other codes of its output."""
    lowest, highest = (bound.T.contiguous() for bound in code_bounds(fine, zero))
    unit, by_input = (fine * coarse[:, None]).T.contiguous(), codes.T.contiguous()
    slope = gram @ (weight.T - (by_input - zero.T) * unit)
    scale = unit * gram.diagonal()[:, None]
    for start in range(0, len(gram), _BLOCK):
        near = slope[start : start + _BLOCK]
        steps, stop = torch.empty_like(near), start + len(near)
        for i in range(len(near)):
            j = start + i
            code = (near[i] / scale[j]).round_().add_(by_input[j]).clamp_(lowest[j], highest[j])
            steps[i] = (code - by_input[j]) * unit[j]
            by_input[j] = code
            near[i + 1 :].addr_(gram[j, j + 1 : stop], steps[i], alpha=-1)
        slope[stop:].addmm_(gram[stop:, start:stop], steps, alpha=-1)
    codes.copy_(by_input.T)


def fit_coarse(codes: Tensor, coarse: Tensor, fine: Tensor, zero: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """The best scale of each output given its codes: least squares in one variable."""
    integers = (codes - zero) * fine
    outputs = integers @ gram
    energy = (outputs * integers).sum(dim=1)
    return torch.where(energy > 0, (outputs * weight).sum(dim=1) / energy, coarse).clamp(min=LEAST)
