"""Decoding attention for CPUs with grouped queries: each key is read once for all query heads that share it.

PyTorch's CPU kernel packs the keys for every query head, and transformers first copies keys and values for each.
Treating the query heads of a group as more queries of one head avoids both. Sums are added in another order, so in
bfloat16 a different token is occasionally the likeliest: it is opt-in (`load_engine(..., grouped=True)`), and
benchmarks use it for all arms. `benchmarks/decode_loop.py` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_grouped"  # its name in transformers: `AutoModelForCausalLM.from_pretrained(..., attn_implementation=NAME)`
_MAX_QUERIES = 16  # with more queries per step, the stock kernel is as fast


def use_grouped(model: Any) -> None:
    """Make a transformers model use grouped attention where that pays: on a CPU, if its heads share keys."""
    config = model.config.get_text_config(decoder=True)
    heads, kv_heads = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    shared = heads is not None and kv_heads is not None and heads > kv_heads
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and shared:
        register()
        model.set_attn_implementation(NAME)


def register() -> None:
    """Register it with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention for transformers, query [rows, heads, queries, width]; all but decoding steps is left to its `sdpa`."""
    rows, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    plain = not any(kwargs.get(name) for name in ("dropout", "output_attentions"))
    plain &= all(kwargs.get(name) is None for name in ("cache", "position_bias"))
    masked = attention_mask is not None and attention_mask.shape[1] == 1
    if groups == 1 or queries > _MAX_QUERIES or not plain or not (masked or (attention_mask is None and queries == 1)):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        stock: Any = sdpa_attention_forward
        return stock(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    mask = attention_mask
    if mask is not None and queries > 1:
        shape = (mask.shape[0], 1, groups, queries, mask.shape[-1])
        mask = mask[:, :, None].expand(shape).reshape(shape[0], 1, groups * queries, shape[-1])
    packed = query.reshape(rows, key.shape[1], groups * queries, width)
    out = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=mask, scale=kwargs.get("scaling"), is_causal=False
    )
    return out.reshape(rows, heads, queries, value.shape[-1]).transpose(1, 2).contiguous(), None
