"""Rounding a weight matrix input by input, each one's error made up for by those that are still to come.

GPTQ (arXiv:2210.17323) for weights of two grains: what an output loses by rounding one weight is taken back, as well as
the inputs' correlations allow, by moving the weights that are not rounded yet. The scale of each output stays as DGQ's
search found it; fine scales and zeros are searched again when a group's turn comes, for its weights have moved.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .scheme import TwoGrains, best_range, rounded, two_grains

DAMPING = 0.01
"""Share of the mean energy of inputs that is added to each, so that the sums can be inverted."""


def compensate(weight: Tensor, size: int, gram: Tensor, found: TwoGrains) -> TwoGrains:
    """Round a weight matrix [outputs, inputs] anew, with compensation, in groups of `size` inputs.

    gram: sums of products of all inputs, float32 [inputs, inputs]. Outputs that are no better for it stay as found. The
    errors of what is returned are those of all inputs together, not within their groups.
    """
    weight, order = weight.float(), _order(gram.diagonal(), size)
    columns = torch.cat(order)
    factor = _factor(gram[columns][:, columns])
    left = weight[:, columns]
    codes, fine, zero = found.codes.clone(), found.fine.clone(), found.zero.clone()
    start = 0
    for inputs in order:
        group, end = int(inputs[0]) // size, start + len(inputs)
        part = left[:, start:end]
        code, fine[:, group], zero[:, group], errors = _group(
            part, gram[inputs][:, inputs], factor[start:end, start:end], found.channel_scale
        )
        codes[:, inputs] = code
        left[:, end:] -= errors @ factor[start:end, end:]
        start = end
    made = replace(found, codes=codes, fine=fine, zero=zero)
    before, after = losses(weight, size, gram, found), losses(weight, size, gram, made)
    better = (after < before)[:, None]
    plain = losses(weight, size, gram, two_grains(weight, size, search=False)).sum()
    whole = _cost(weight, gram).sum().clamp(min=1e-30)
    return replace(
        found,
        codes=torch.where(better, made.codes, found.codes),
        fine=torch.where(better, made.fine, found.fine),
        zero=torch.where(better, made.zero, found.zero),
        error=float(torch.minimum(before, after).sum() / whole),
        plain_error=float(plain / whole),
    )


def losses(weight: Tensor, size: int, gram: Tensor, found: TwoGrains) -> Tensor:
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


def _factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the sums, with as much damping as it takes."""
    mean, damping = gram.diagonal().mean().clamp(min=1e-30), DAMPING
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + damping * mean * torch.eye(len(gram)))
        if not failed:
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return factor
        damping *= 10


def _group(part: Tensor, gram: Tensor, factor: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [outputs, inputs], fine scales and zeros [outputs] of one group, and what is left to make up for."""
    scale, zero = (found[0] for found in best_range(part[None], gram[None]))
    part = part.clone()
    codes, errors = torch.empty(part.shape, dtype=torch.uint8), torch.empty_like(part)
    fine = torch.ones_like(scale)
    for i in range(part.shape[1]):
        code, fine, unit = (t[..., 0] if t.ndim > 1 else t for t in rounded(part[:, i, None], scale, zero, coarse))
        errors[:, i] = (part[:, i] - (code - zero) * unit) / factor[i, i]
        part[:, i + 1 :] -= errors[:, i, None] * factor[i, i + 1 :]
        codes[:, i] = code.to(torch.uint8)
    return codes, fine.to(torch.uint8), zero.to(torch.uint8), errors
