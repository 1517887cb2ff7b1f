"""Attention of a decoding step over a prefix that all rows share, and over what each has of its own after it.

Hydragen (arXiv 2402.05099): the prefix is read once, by the queries of all rows as if they were those of one sequence,
and each row's suffix by itself. Each part gives its output and the log-sum-exp of its logits; what the softmax over
both would have given is the mean of the outputs, weighted by exp(log-sum-exp - the higher one).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ...errors import OptionError
from ..native import KINDS

Part = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
"""Queries [rows, heads, queries, dim], keys and values [rows, heads, keys, dim], what of them is seen, the scale: the
output, and the log-sum-exp of the logits, float32 [rows, heads, queries]."""


def shared_prefix_attention(
    query: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of query [rows, heads, 1, dim] over both parts; gives the same shape and dtype, without gradients.

    prefix_keys, prefix_values: [kv_heads, prefix, dim]; suffix_keys, suffix_values: [rows, kv_heads, suffix, dim]; each
    key is shared by heads / kv_heads query heads in a row. lengths: whole numbers [rows], how much of its suffix a row
    has, None for all. scale: of the logits, None for 1 / sqrt(dim). A row that sees no key at all gives NaN. Raises
    OptionError for shapes and dtypes that do not fit: float32, bfloat16 or float16, the same throughout.
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
        seen = None if lengths is None else _seen(lengths, suffix_keys.shape[2])
        parts.append(part(packed, suffix_keys.detach(), suffix_values.detach(), seen, scale))
    if not parts:
        return torch.full_like(query, torch.nan)
    outputs, totals = zip(*parts, strict=True)
    return merge(outputs, totals).to(query.dtype).reshape(query.shape)


def _over_prefix(part: Part, packed: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The prefix's part for packed queries [rows, kv_heads, groups, dim], in one product a key-value head."""
    rows, kv_heads, groups, dim = packed.shape
    as_one = packed.transpose(0, 1).reshape(1, kv_heads, rows * groups, dim)
    out, total = part(as_one, keys[None], values[None], None, scale)
    shape = (kv_heads, rows, groups)
    return out.reshape(*shape, dim).transpose(0, 1), total.reshape(shape).transpose(0, 1)


def _seen(lengths: Tensor, columns: int) -> Tensor:
    """Which keys a row has, [rows, 1, 1, columns]."""
    return (torch.arange(columns, device=lengths.device) < lengths[:, None])[:, None, None]


def reference(
    query: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition of `shared_prefix_attention`: torch's own on a cache with a copy of the prefix in each row."""
    rows, heads = query.shape[:2]
    keys, values = (
        torch.cat([shared.expand(rows, *shared.shape), own], dim=2).repeat_interleave(heads // len(shared), dim=1)
        for shared, own in ((prefix_keys, suffix_keys), (prefix_values, suffix_values))
    )
    seen = None
    if lengths is not None:
        seen = _seen(prefix_keys.shape[1] + lengths, keys.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scale)


def merge(outputs: tuple[Tensor, ...], totals: tuple[Tensor, ...]) -> Tensor:
    """One attention of several over different keys, float32: outputs [..., dim] and log-sum-exps [...] of each."""
    stacked = torch.stack(totals)
    weights = (stacked - stacked.amax(dim=0)).exp()  # of nothing at all, -inf - -inf: NaN, which is right
    weights = weights / weights.sum(dim=0)
    # A part in which nothing is seen may put out anything; zero times that might be NaN.
    terms = [torch.where(w[..., None] == 0, 0.0, w[..., None] * out) for w, out in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum(dim=0)


@cache
def _implementation(device: str) -> Part:
    """The fastest way to the two results of a part, on a kind of device."""
    if device == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return in_flash
    return in_torch


def in_torch(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """A part by matrix products in float32."""
    logits = (query.float() * scale) @ keys.float().transpose(-2, -1)
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    # Not exp(logits - log-sum-exp): of logits of 1e4, the latter is right to a thousandth only.
    return logits.softmax(dim=-1) @ values.float(), logits.logsumexp(dim=-1)


def in_flash(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """A part by the kernel under torch's attention on CPUs, which has the log-sum-exp that the public one keeps."""
    # Below the public function nobody checks: with another stride the kernel would read what it should not.
    query, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, keys, values))
    mask = None
    if seen is not None:
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
    operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, total = operation(query, keys, values, attn_mask=mask, scale=scale)
    if seen is not None:  # the kernel gives 0 where nothing is seen
        total = total.masked_fill(~seen.any(dim=-1), -torch.inf)
    return out, total


def _check(
    query: Tensor, keys: Tensor, values: Tensor, own_keys: Tensor, own_values: Tensor, lengths: Tensor | None
) -> None:
    """Raise OptionError for what does not fit together."""
    parts = (query, keys, values, own_keys, own_values)
    names = ("query", "prefix_keys", "prefix_values", "suffix_keys", "suffix_values")
    got = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(names, parts, strict=True))
    kinds = {part.dtype for part in parts}
    if len(kinds) > 1 or query.dtype not in KINDS or len({part.device for part in parts}) > 1:
        found = ", ".join(f"{name} {part.dtype} on {part.device}" for name, part in zip(names, parts, strict=True))
        raise OptionError(f"got {found}; accepted: float32, bfloat16 or float16, one of them throughout, on one device")
    fits = query.ndim == 4 and keys.ndim == 3 and own_keys.ndim == 4
    fits = fits and query.shape[2] == 1 and keys.shape == values.shape and own_keys.shape == own_values.shape
    if fits:
        (rows, heads, _, dim), kv_heads = query.shape, keys.shape[0]
        fits = keys.shape[2] == own_keys.shape[3] == dim > 0 and own_keys.shape[:2] == (rows, kv_heads)
        fits = fits and kv_heads > 0 and heads >= kv_heads and heads % kv_heads == 0
    if not fits:
        raise OptionError(
            f"got {got}; accepted: query [rows, heads, 1, dim], prefix_* [kv_heads, prefix, dim], suffix_* [rows, "
            "kv_heads, suffix, dim], with heads a multiple of kv_heads"
        )
    if lengths is None:
        return
    if lengths.shape != query.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise OptionError(
            f"lengths are {lengths.dtype} {list(lengths.shape)}; accepted: whole numbers [{len(query)}], one a row"
        )
    if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= own_keys.shape[2]:
        raise OptionError(f"lengths are {lengths.tolist()}; accepted: 0 to {own_keys.shape[2]}, what the suffix holds")
