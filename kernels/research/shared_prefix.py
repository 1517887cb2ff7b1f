"""Decoding attention for rows that share a prefix (Hydragen, arXiv:2402.05099).

The prefix is read once: the queries of all rows are treated as queries of one sequence. Each row's own suffix is
attended to separately. Both parts return their output and the log-sum-exp of their logits. The attention over both is
the mean of the outputs, weighted by exp(log-sum-exp - the higher one).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ...errors import OptionError
from ..native import KINDS

Part = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
"""From queries [rows, heads, queries, dim], keys and values [rows, heads, keys, dim], the mask of visible keys and the
scale, to the output and the log-sum-exp of the logits, float32 [rows, heads, queries]."""


def shared_prefix_attention(
    query: Tensor,  # [rows, heads, 1, dim]; heads / kv_heads consecutive ones share a key
    prefix_keys: Tensor,  # [kv_heads, prefix, dim], as the values
    prefix_values: Tensor,
    suffix_keys: Tensor,  # [rows, kv_heads, suffix, dim], as the values
    suffix_values: Tensor,
    *,
    lengths: Tensor | None = None,  # integers [rows], of each row's suffix; None for all of it
    scale: float | None = None,  # of the logits; None for 1 / sqrt(dim)
) -> Tensor:
    """Attend to a shared prefix and to each row's suffix. Without gradients; a row without any key gives NaN.

    The result has the shape and dtype of the query. Raises OptionError for shapes, devices or dtypes that do not fit;
    the dtype must be float32, bfloat16 or float16 throughout.
    """
    _check(query, prefix_keys, prefix_values, suffix_keys, suffix_values, lengths)
    rows, heads, _, dim = query.shape
    kv_heads = prefix_keys.shape[0]
    if not rows:
        return torch.empty_like(query)
    part = _implementation(query.device.type)
    scale = dim**-0.5 if scale is None else scale
    packed = query.detach().reshape(rows, kv_heads, heads // kv_heads, dim)
    parts = []
    if prefix_keys.shape[1]:
        parts.append(_over_prefix(part, packed, prefix_keys.detach(), prefix_values.detach(), scale))
    if suffix_keys.shape[2]:
        seen = None  # the mask of visible keys, [rows, 1, 1, suffix]
        if lengths is not None:
            seen = (torch.arange(suffix_keys.shape[2], device=lengths.device) < lengths[:, None])[:, None, None]
        parts.append(part(packed, suffix_keys.detach(), suffix_values.detach(), seen, scale))
    if not parts:
        return torch.full_like(query, torch.nan)
    outputs, totals = zip(*parts, strict=True)
    return merge(outputs, totals).to(query.dtype).reshape(query.shape)


def _over_prefix(part: Part, packed: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend to the prefix for packed queries [rows, kv_heads, groups, dim], in one product per key-value head."""
    rows, kv_heads, groups, dim = packed.shape
    queries = packed.transpose(0, 1).reshape(1, kv_heads, rows * groups, dim)
    out, total = part(queries, keys[None], values[None], None, scale)
    shape = (kv_heads, rows, groups)
    return out.reshape(*shape, dim).transpose(0, 1), total.reshape(shape).transpose(0, 1)


def merge(outputs: tuple[Tensor, ...], totals: tuple[Tensor, ...]) -> Tensor:
    """Combine attention over disjoint keys, in float32: outputs [..., dim] and log-sum-exps [...] of each part."""
    stacked = torch.stack(totals)
    weights = (stacked - stacked.amax(dim=0)).exp()  # without any key, -inf - -inf is NaN, as intended
    weights = weights / weights.sum(dim=0)
    # The output of a part without visible keys is undefined; zero times it might be NaN.
    terms = [torch.where(w[..., None] == 0, 0.0, w[..., None] * out) for w, out in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum(dim=0)


@cache
def _implementation(device: str) -> Part:
    """The fastest implementation of a part on a type of device."""
    if device == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return in_flash
    return in_torch


def in_torch(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute a part by matrix products in float32."""
    logits = (query.float() * scale) @ keys.float().transpose(-2, -1)
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    # Not exp(logits - log-sum-exp): for logits of 1e4, float32 log-sum-exps are only exact to 0.001.
    return logits.softmax(dim=-1) @ values.float(), logits.logsumexp(dim=-1)


def in_flash(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute a part with torch's internal CPU kernel, which also returns the log-sum-exp."""
    # The internal kernel checks nothing: with another stride it would read the wrong memory.
    query, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, keys, values))
    mask = None
    if seen is not None:
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
    operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, total = operation(query, keys, values, attn_mask=mask, scale=scale)
    if seen is not None:  # the kernel returns 0 where no key is visible
        total = total.masked_fill(~seen.any(dim=-1), -torch.inf)
    return out, total


def _check(
    query: Tensor, keys: Tensor, values: Tensor, own_keys: Tensor, own_values: Tensor, lengths: Tensor | None
) -> None:
    """Raise OptionError for tensors that do not fit together."""
    parts = (query, keys, values, own_keys, own_values)
    fits = len({(part.dtype, part.device) for part in parts}) == 1 and query.dtype in KINDS
    if fits := fits and (query.ndim, keys.ndim, own_keys.ndim) == (4, 3, 4):
        (rows, heads, queries, dim), kv_heads = query.shape, max(len(keys), 1)
        fits = queries == 1 and dim > 0 and heads % kv_heads == 0 and heads >= kv_heads == len(keys)
        fits = fits and keys.shape == values.shape == (kv_heads, keys.shape[1], dim)
        fits = fits and own_keys.shape == own_values.shape == (rows, kv_heads, own_keys.shape[2], dim)
    if not fits:
        raise OptionError(
            f"got {', '.join(f'{part.dtype} {list(part.shape)} on {part.device}' for part in parts)}; accepted: query "
            "[rows, heads, 1, dim], prefix_* [kv_heads, prefix, dim], suffix_* [rows, kv_heads, suffix, dim], with "
            "heads a multiple of kv_heads, all in the same of float32, bfloat16 and float16, on one device"
        )
    if lengths is None:
        return
    if lengths.shape != query.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise OptionError(f"lengths are {lengths.dtype} {list(lengths.shape)}; accepted: {len(query)} integers")
    if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= own_keys.shape[2]:
        raise OptionError(f"lengths are {lengths.tolist()}; accepted: 0 to {own_keys.shape[2]}")
