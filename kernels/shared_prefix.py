"""Decoding attention on CPUs for rows that share a prefix, which is read once (Hydragen, arXiv:2402.05099).

The queries of all rows are treated as queries of one sequence, and each row's own suffix is attended to separately.
Both parts return their output and the log-sum-exp of their logits. The attention over both is the mean of the outputs,
weighted by exp(log-sum-exp - the higher one). Sums are added in another order than in torch's attention on a copy per
row. `benchmarks/research_attention.py` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_shared_prefix"  # its name in transformers
_LEAST_ROWS, _LEAST_READS = 4, 8192


def pays(rows: int, length: int) -> bool:
    """Whether a step takes less time with a prefix of this length read once, by measurement (docs/LOG.md)."""
    return rows >= _LEAST_ROWS and rows * length >= _LEAST_READS


def register() -> None:
    """Register it with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention for transformers, query [rows, heads, queries, width]; the mask has the columns of both parts.

    `key.shared_prefix` has the keys and values of the prefix, [1, kv_heads, prefix, width]; key and value are those of
    the suffixes.
    """
    rows, heads, queries, width = query.shape
    prefix: tuple[Tensor, Tensor] = key.shared_prefix  # type: ignore[attr-defined]
    kv_heads, mask = key.shape[1], attention_mask
    assert mask is not None or queries == 1
    if mask is not None:
        mask = mask[:, :, None, :, prefix[0].shape[2] :].expand(-1, 1, heads // kv_heads, -1, -1).flatten(2, 3)
    packed = query.reshape(rows, kv_heads, heads // kv_heads * queries, width)
    out = attend(packed, prefix, (key, value), mask, kwargs.get("scaling"))
    return out.reshape(rows, heads, queries, width).transpose(1, 2).contiguous(), None


def attend(
    query: Tensor,  # [rows, kv_heads, queries, dim]
    prefix: tuple[Tensor, Tensor],  # keys and values, [1, kv_heads, prefix, dim]
    suffix: tuple[Tensor, Tensor],  # keys and values, [rows, kv_heads, suffix, dim]
    mask: Tensor | None = None,  # visible keys of the suffix, bool [rows, 1, queries or 1, suffix]; None for all
    scale: float | None = None,  # of the logits; None for 1 / sqrt(dim)
) -> Tensor:
    """Attend to a shared prefix and to each row's suffix, without gradients. Shape and dtype are those of the query."""
    rows, kv_heads, queries, dim = query.shape
    scale = dim**-0.5 if scale is None else scale
    packed = query.transpose(0, 1).reshape(1, kv_heads, rows * queries, dim)
    out, total = in_flash(packed, *prefix, None, scale)
    shape = (kv_heads, rows, queries)
    over_prefix = out.reshape(*shape, dim).transpose(0, 1), total.reshape(shape).transpose(0, 1)
    outputs, totals = zip(over_prefix, in_flash(query, *suffix, mask, scale), strict=True)
    return merge(outputs, totals).to(query.dtype)


def merge(outputs: tuple[Tensor, ...], totals: tuple[Tensor, ...]) -> Tensor:
    """Combine attention over disjoint keys, in float32: outputs [..., dim] and log-sum-exps [...] of each part."""
    stacked = torch.stack(totals)
    weights = (stacked - stacked.amax(dim=0)).exp()
    weights = weights / weights.sum(dim=0)
    # The output of a part without visible keys is undefined; zero times it might be NaN.
    terms = [torch.where(w[..., None] == 0, 0.0, w[..., None] * out) for w, out in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum(dim=0)


def in_flash(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute a part with torch's internal CPU kernel: the output, and the log-sum-exps [rows, heads, queries]."""
    # The internal kernel checks nothing: with another stride it would read the wrong memory.
    query, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (query.detach(), keys, values))
    mask = None
    if seen is not None:
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
    operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, total = operation(query, keys, values, attn_mask=mask, scale=scale)
    if seen is not None:  # the kernel returns 0 where no key is visible
        total = total.masked_fill(~seen.any(dim=-1), -torch.inf)
    return out, total
