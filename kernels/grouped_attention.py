"""Attention of decoding on CPUs where query heads share keys: one read of a key for all heads that want it.

PyTorch's kernel for CPUs packs the keys anew for every query head, which for the one or few queries of a decoding step
is most of its work, and transformers copies keys and values once for each head before. Seen as more queries of fewer
heads, the same attention needs neither.

It adds up in another order than the stock kernel, so that now and then, in bfloat16, another token is likeliest. So it
is there for those who ask for it (`load_engine(..., grouped=True)`); what measures models has all arms ask for it, and
`tersely quantize` what writes texts. Its reference is transformers' `sdpa`; `benchmarks/decode_loop.py` times it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_grouped"
"""By which transformers knows it: `AutoModelForCausalLM.from_pretrained(..., attn_implementation=NAME)`."""
_FEW = 16
"""Most queries of a step; from there on the stock kernel is as good."""


def use_grouped(model: Any) -> None:
    """Let a model that transformers has loaded decode by it, where that pays: on a CPU, with heads that share keys."""
    config = model.config.get_text_config(decoder=True)
    heads, pairs = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    shared = heads is not None and pairs is not None and heads > pairs
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and shared:
        register()
        model.set_attn_implementation(NAME)


def register() -> None:
    """Tell transformers of it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers asks for it: query [rows, heads, queries, width], key and value with fewer heads.

    Anything but the few queries of a decoding step is left to transformers' own `sdpa`.
    """
    rows, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    plain = not any(kwargs.get(name) for name in ("dropout", "output_attentions"))
    plain &= all(kwargs.get(name) is None for name in ("cache", "position_bias"))
    masked = attention_mask is not None and attention_mask.shape[1] == 1
    if groups == 1 or queries > _FEW or not plain or not (masked or (attention_mask is None and queries == 1)):
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
