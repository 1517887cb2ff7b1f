"""Rounding a weight matrix input by input, each one's error made up for by those that are still to come.

GPTQ (arXiv:2210.17323) for weights of two grains: what an output loses by rounding one weight is taken back, as well as
the inputs' correlations allow, by moving the weights that are not rounded yet. Both phases of DGQ's search see it: the
range of a group is searched when its turn comes, for its weights have moved, by the error that is left once all later
groups have made up for theirs; and the scale of an output is fitted to all its codes. Between fits, each code is looked
at again beside all others (coordinate descent).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...errors import ModelError
from .scheme import FINE_GRID, LEAST, DualGrained, code_bounds, dual_grained

DAMPING = 0.01
"""Share of the mean energy of inputs that is added to each, so that the sums can be inverted."""
PASSES = 3
"""How often each code is looked at again."""
_BLOCK = 128  # inputs after which the errors of all others are brought up to date


def compensate(weight: Tensor, size: int, gram: Tensor, *, search: bool = True) -> DualGrained:
    """Quantize a weight matrix [outputs, inputs] with compensation, in groups of `size` inputs.

    gram: sums of products of all inputs, float32 [inputs, inputs]. Outputs that are no better for it are rounded
    plainly. Without a search, ranges are full. Errors are those of all inputs together, not within their groups. Raises
    ModelError for sums that are no numbers.
    """
    weight, order = weight.float(), _order(gram.diagonal(), size)
    plain = dual_grained(weight, size, search=False)
    columns, coarse = torch.cat(order), plain.channel_scale
    damped, factor = _factor(gram[columns][:, columns])
    sizes = [len(inputs) for inputs in order]
    sorted_weight = weight[:, columns]
    codes, fine, zero = _swept(sorted_weight.clone(), sizes, factor, coarse, FINE_GRID if search else (1.0,))
    for _ in range(PASSES):
        _descend(codes, coarse, fine, zero, sorted_weight, damped)
        if search:
            coarse = _fitted(codes, coarse, fine, zero, sorted_weight, damped)
    place = columns.argsort()
    codes, fine, zero = (t[:, place].to(torch.uint8) for t in (codes, fine, zero))
    made = DualGrained(codes, fine[:, ::size].contiguous(), zero[:, ::size].contiguous(), coarse, 0.0, 0.0)
    return _better(weight, size, gram, plain, made)


def _swept(
    left: Tensor, sizes: list[int], factor: Tensor, coarse: Tensor, grid: Iterable[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, fine scales and zeros of weights [outputs, inputs], groups of some sizes one after the other.

    `left` becomes what was there to be rounded when each group's turn came.
    """
    codes, fine, zero = (torch.empty_like(left) for _ in range(3))
    start = 0
    for size in sizes:
        here = slice(start, start + size)
        block = factor[here, here]
        scale, shift = _range(left[:, here], torch.cholesky_inverse(block.T.contiguous()), coarse, grid)
        fine[:, here], zero[:, here] = scale[:, None], shift[:, None]
        codes[:, here], errors = _rounded(left[:, here], block, scale, shift, coarse)
        left[:, here.stop :] -= errors @ factor[here, here.stop :]
        start = here.stop
    return codes, fine, zero


def _better(weight: Tensor, size: int, gram: Tensor, plain: DualGrained, made: DualGrained) -> DualGrained:
    """Of each output that which loses less."""
    before, after = losses(weight, size, gram, plain), losses(weight, size, gram, made)
    whole, better = _cost(weight, gram).sum().clamp(min=1e-30), after < before

    def of(ours: Tensor, other: Tensor) -> Tensor:
        return torch.where(better.view(-1, *(1,) * (ours.ndim - 1)), ours, other)

    return DualGrained(
        of(made.codes, plain.codes),
        of(made.fine, plain.fine),
        of(made.zero, plain.zero),
        of(made.channel_scale, plain.channel_scale),
        error=float(torch.minimum(before, after).sum() / whole),
        plain_error=float(before.sum() / whole),
    )


def losses(weight: Tensor, size: int, gram: Tensor, found: DualGrained) -> Tensor:
    """The squared error of each output of a matrix in two grains, float32 [outputs]."""
    fine, zero = (t.repeat_interleave(size, dim=1)[:, : weight.shape[1]].float() for t in (found.fine, found.zero))
    return _cost((found.codes - zero) * fine * found.channel_scale[:, None] - weight, gram)


def _cost(rows: Tensor, gram: Tensor) -> Tensor:
    return (rows @ gram).mul_(rows).sum(dim=1)


def _order(energy: Tensor, size: int) -> list[Tensor]:
    """The inputs of each group, those of high energy first, and so the groups: they are rounded with least on top."""
    groups = torch.arange(len(energy)).split(size)
    ranked = sorted(groups, key=lambda inputs: -float(energy[inputs].mean()))
    return [inputs[energy[inputs].argsort(descending=True, stable=True)] for inputs in ranked]


def _factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The sums with as much damping as it takes, and the upper Cholesky factor of their inverse; raises ModelError."""
    if not bool(gram.isfinite().all()):
        raise ModelError(
            "a layer's inputs on the calibration text are NaN or infinite; check the checkpoint and its dtype"
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


def _range(part: Tensor, gram: Tensor, coarse: Tensor, grid: Iterable[float]) -> tuple[Tensor, Tensor]:
    """The fine scale and the zero [outputs] of a group of weights [outputs, inputs] by which it loses least."""
    low, high = part.amin(dim=1).clamp(max=0), part.amax(dim=1).clamp(min=0)
    best = fine = zero = None
    for ratio in grid:
        f = ((high - low) * ratio / 15 / coarse).round().clamp_(1, 127)
        z = (-low * ratio / (f * coarse)).round().clamp_(0, 15)
        lowest, highest = code_bounds(f, z)
        codes = (part / (f * coarse)[:, None]).round_().add_(z[:, None]).clamp_(lowest[:, None], highest[:, None])
        error = _cost(codes.sub_(z[:, None]).mul_((f * coarse)[:, None]).sub_(part), gram)
        if best is None or fine is None or zero is None:
            best, fine, zero = error, f, z
            continue
        better = error < best
        best, fine, zero = (torch.where(better, a, b) for a, b in ((error, best), (f, fine), (z, zero)))
    assert fine is not None and zero is not None
    return fine, zero


def _rounded(part: Tensor, factor: Tensor, fine: Tensor, zero: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of one group's weights [outputs, inputs], and what is left for others to make up for."""
    codes, errors, unit = torch.empty_like(part), torch.empty_like(part), fine * coarse
    lowest, highest = code_bounds(fine, zero)
    for i in range(part.shape[1]):
        code = (part[:, i] / unit).round_().add_(zero).clamp_(lowest, highest)
        errors[:, i] = (part[:, i] - (code - zero) * unit) / factor[i, i]
        part[:, i + 1 :] -= errors[:, i, None] * factor[i, i + 1 :]
        codes[:, i] = code
    return codes, errors


def _descend(codes: Tensor, coarse: Tensor, fine: Tensor, zero: Tensor, weight: Tensor, gram: Tensor) -> None:
    """Move each code to where its output loses least beside all other codes, once, in place."""
    lowest, highest = code_bounds(fine, zero)
    energy, unit = gram.diagonal(), fine * coarse[:, None]
    slope = (weight - (codes - zero) * unit) @ gram
    for start in range(0, codes.shape[1], _BLOCK):
        here = slice(start, start + _BLOCK)
        near, block, moved = slope[:, here].clone(), gram[here, here], torch.empty_like(slope[:, here])
        for i in range(near.shape[1]):
            j = start + i
            code = (near[:, i] / energy[j] / unit[:, j]).round_().add_(codes[:, j])
            code = code.clamp_(lowest[:, j], highest[:, j])
            moved[:, i] = (code - codes[:, j]) * unit[:, j]
            codes[:, j] = code
            near -= moved[:, i, None] * block[i]
        slope -= moved @ gram[here]


def _fitted(codes: Tensor, coarse: Tensor, fine: Tensor, zero: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """The scale of each output at which its codes lose least: least squares in one number."""
    whole = (codes - zero) * fine
    seen = whole @ gram
    energy = (seen * whole).sum(dim=1)
    return torch.where(energy > 0, (seen * weight).sum(dim=1) / energy, coarse).clamp(min=LEAST)
