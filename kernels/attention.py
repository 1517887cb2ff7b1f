"""Attention of decoding steps on CPUs that reads a key once: for the heads or for the rows that share it.

**Grouped queries.** PyTorch's CPU kernel packs the keys for every query head, and transformers first copies keys and
values for each. Treating the query heads of a group as more queries of one head avoids both. Sums are added in another
order, so in bfloat16 a different token is occasionally the likeliest: it is opt-in (`load_engine(..., grouped=True)`),
and benchmarks use it for all arms. `benchmarks/decode_loop.py` measures it.

**A shared prefix** (Hydragen, arXiv:2402.05099). The queries of all rows are treated as queries of one sequence, and
each row's own suffix is attended to separately. Both parts return their output and the log-sum-exp of their logits. The
attention over both is the mean of the outputs, weighted by exp(log-sum-exp - the higher one). Sums are added in another
order than in torch's attention on a copy per row. `benchmarks/research_attention.py` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

GROUPED, SHARED_PREFIX = "sdpa_grouped", "sdpa_shared_prefix"
"""Names in transformers, as for `AutoModelForCausalLM.from_pretrained(..., attn_implementation=GROUPED)`."""
_MAX_QUERIES = 16  # with more queries per step, the stock kernel is as fast
_LEAST_ROWS, _LEAST_READS = 8, 8192
_ROOM = 64  # columns that a cache grows by, at least


def use_grouped(model: Any) -> None:
    """Make a transformers model use grouped attention where that pays: on a CPU, if its heads share keys."""
    config = model.config.get_text_config(decoder=True)
    heads, kv_heads = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    shared = heads is not None and kv_heads is not None and heads > kv_heads
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and shared:
        register(GROUPED, grouped_attention)
        model.set_attn_implementation(GROUPED)


def register(name: str, attention: Any) -> None:
    """Register an attention with transformers."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention for transformers, query [rows, heads, queries, width]; all but decoding steps is left to its `sdpa`."""
    heads, queries = query.shape[1:3]
    plain = not any(kwargs.get(name) for name in ("dropout", "output_attentions"))
    plain &= all(kwargs.get(name) is None for name in ("cache", "position_bias"))
    masked = attention_mask is not None and attention_mask.shape[1] == 1
    if (
        heads == key.shape[1]
        or queries > _MAX_QUERIES
        or not plain
        or not (masked or (attention_mask is None and queries == 1))
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        stock: Any = sdpa_attention_forward
        return stock(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    packed, mask = _group(query, attention_mask, key.shape[1])
    out = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=mask, scale=kwargs.get("scaling"), is_causal=False
    )
    return _ungroup(out, heads), None


def _group(query: Tensor, mask: Tensor | None, kv_heads: int) -> tuple[Tensor, Tensor | None]:
    """The query heads that share a key as more queries of one head, [rows, kv_heads, groups * queries, width].

    And the mask, [rows, 1, queries, keys], for these queries; that of a single one is the same for all of them.
    """
    rows, heads, queries, width = query.shape
    groups = heads // kv_heads
    if mask is not None and queries > 1:
        mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    return query.reshape(rows, kv_heads, groups * queries, width), mask


def _ungroup(out: Tensor, heads: int) -> Tensor:
    """The output for queries of `_group` as transformers wants it, [rows, queries, heads, width]."""
    return out.reshape(len(out), heads, -1, out.shape[-1]).transpose(1, 2).contiguous()


def prefix_pays(rows: int, length: int) -> bool:
    """Whether a step takes less time with a prefix of this length read once, by measurement (docs/LOG.md)."""
    return rows >= _LEAST_ROWS and rows * length >= _LEAST_READS


def prefix_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention for transformers, query [rows, heads, queries, width]; the mask has the columns of both parts.

    `key.shared_prefix` has the keys and values of the prefix, [1, kv_heads, prefix, width]; key and value are those of
    the suffixes.
    """
    prefix: tuple[Tensor, Tensor] = key.shared_prefix  # type: ignore[attr-defined]
    assert attention_mask is not None or query.shape[2] == 1
    own = None if attention_mask is None else attention_mask[..., prefix[0].shape[2] :]
    packed, mask = _group(query, own, key.shape[1])
    return _ungroup(attend_with_prefix(packed, prefix, (key, value), mask, kwargs.get("scaling")), query.shape[1]), None


def attend_with_prefix(
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


class PreallocatedCacheLayer(DynamicLayer):  # type: ignore[misc]
    """Like `DynamicLayer`, which concatenates; here `keys` and `values` are the filled part of larger buffers.

    They may be replaced, selected or cropped: a part that no longer begins its buffer is copied into a new one.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))  # which attributes a layer has differs between releases of transformers
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, new, width] and return all, [rows, heads, length, width]."""
        if not self.is_initialized or self.keys.dim() < 4:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        length = self.keys.shape[-2]
        end = length + key_states.shape[-2]
        keys, values = self._buffers_for(end)
        keys[..., length:end, :] = key_states
        values[..., length:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _buffers_for(self, end: int) -> tuple[Tensor, Tensor]:
        """Buffers that begin with the current keys and values and have at least `end` columns."""
        held = (self.keys, self.values)
        if self._buffers is not None and all(
            part.data_ptr() == buffer.data_ptr() and part.stride() == buffer.stride() and end <= buffer.shape[-2]
            for part, buffer in zip(held, self._buffers, strict=True)
        ):
            return self._buffers
        grown = []
        for part in held:
            rows, heads, length, width = part.shape
            buffer = part.new_zeros((rows, heads, end + max(_ROOM, end // 4), width))
            buffer[..., :length, :] = part
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])
        return self._buffers


class SharedPrefixLayer(PreallocatedCacheLayer):
    """Keeps a prefix that all rows share once, for `prefix_attention`; `keys` and `values` are what follows it."""

    def __init__(self, layer: DynamicLayer, rows: int) -> None:
        """`layer` has read the prefix, keys and values [1, heads, prefix, width]."""
        super().__init__(layer)
        self.prefix = (layer.keys, layer.values)
        self.keys, self.values = (part[:, :, :0].expand(rows, -1, -1, -1) for part in self.prefix)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, new, width] and return all after the prefix, which the keys hold as attribute."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        keys.shared_prefix = self.prefix  # type: ignore[attr-defined]
        return keys, values

    def get_seq_length(self) -> int:
        """The columns of prefix and suffix."""
        return int(self.prefix[0].shape[-2] + self.keys.shape[-2])

    def expand(self) -> PreallocatedCacheLayer:
        """A layer with a copy of the prefix in each row."""
        plain = DynamicLayer()
        plain.lazy_initialization(self.keys, self.values)
        rows = len(self.keys)
        parts = zip(self.prefix, (self.keys, self.values), strict=True)
        plain.keys, plain.values = (torch.cat([one.expand(rows, -1, -1, -1), own], dim=-2) for one, own in parts)
        return PreallocatedCacheLayer(plain)
