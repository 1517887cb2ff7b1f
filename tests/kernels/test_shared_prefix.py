"""Shared-prefix attention equals attention on the expanded cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tersely.kernels.attention import (
    SHARED_PREFIX,
    attend_with_prefix,
    merge,
    prefix_attention,
    prefix_pays,
    register,
)

Shape = tuple[int, int, int, int, int, int]  # rows, kv_heads, queries, prefix, suffix, dim
SHAPES: list[Shape] = [
    (3, 2, 7, 130, 33, 64),
    (1, 4, 1, 5, 1, 16),
    (2, 1, 6, 1, 9, 1),
    (5, 3, 1, 257, 70, 80),
    (9, 2, 4, 31, 7, 5),
]
Given = tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def reference(
    query: Tensor, prefix: Any, suffix: Any, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The definition: torch's attention with a copy of the prefix in each row."""
    keys, values = (
        torch.cat([one.expand(len(own), *one.shape[1:]), own], dim=2) for one, own in zip(prefix, suffix, strict=True)
    )
    if mask is not None:
        mask = torch.cat([mask.new_ones((*mask.shape[:-1], prefix[0].shape[2])), mask], dim=-1)
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


def parts(shape: Shape, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Given:
    """A query and both parts of the cache; scale: of the query."""
    rows, kv_heads, queries, prefix, suffix, dim = shape
    generator = torch.Generator().manual_seed(sum(shape))
    query = torch.randn(rows, kv_heads, queries, dim, generator=generator) * scale
    held = [
        torch.randn(count, kv_heads, size, dim, generator=generator).to(dtype)
        for count, size in ((1, prefix), (1, prefix), (rows, suffix), (rows, suffix))
    ]
    return query.to(dtype), (held[0], held[1]), (held[2], held[3])


def ragged(rows: int, suffix: int) -> Tensor:
    """A mask of suffixes from nothing to everything."""
    lengths = torch.arange(rows) * suffix // max(1, rows - 1)
    return (torch.arange(suffix) < lengths[:, None])[:, None, None]


def assert_right(given: Given, mask: Tensor | None = None) -> None:
    """Assert closeness to torch on the expanded cache, depending on the dtype."""
    found = attend_with_prefix(*given, mask)
    assert found.shape == given[0].shape and found.dtype == given[0].dtype
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, reference(*given, mask), atol=1e-5, rtol=1e-5)
    query, prefix, suffix = given
    prefixes, suffixes = ([part.double() for part in pair] for pair in (prefix, suffix))
    truth = reference(query.double(), prefixes, suffixes, mask)
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[found.dtype]
    torch.testing.assert_close(found.double(), truth, atol=bound, rtol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_equals_attention_on_the_expanded_cache(shape: Shape, dtype: torch.dtype) -> None:
    given = parts(shape, dtype)
    assert_right(given)
    assert_right(given, ragged(shape[0], shape[4]))


def test_strides() -> None:
    query, prefix, suffix = parts((3, 2, 3, 12, 5, 16))
    for axes in ((0, 1), (1, 2), (0, 2)):
        one, *held = (part.transpose(*axes).contiguous().transpose(*axes) for part in (query, *prefix, *suffix))
        assert_right((one, (held[0], held[1]), (held[2], held[3])), ragged(3, 5))
    one, *held = (part.repeat_interleave(2, dim=-1)[..., ::2] for part in (query, *prefix, *suffix))
    assert held[0].stride(-1) == 2
    assert_right((one, (held[0], held[1]), (held[2], held[3])), ragged(3, 5))
    one_row = [part[:1].expand_as(part) for part in (query, *suffix)]
    assert_right((one_row[0], prefix, (one_row[1], one_row[2])))


def test_extreme_logits_overflow_nothing() -> None:
    for sign in (1.0, -1.0):
        query, prefix, suffix = parts((4, 2, 3, 9, 4, 16))
        high = torch.full_like(prefix[0], 25.0 * sign), prefix[1]  # logits +-1e4
        low = -suffix[0].sign().abs() * 25.0 * sign, suffix[1]
        assert_right((torch.full_like(query, 100.0), high, low))
        assert_right((torch.full_like(query, 100.0), high, low), ragged(4, 4))
    assert_right(parts((4, 2, 3, 40, 20, 16), scale=1e4))
    tiny, prefix, suffix = parts((4, 2, 3, 40, 20, 16), scale=1e-30)
    mean = torch.cat([prefix[1][0, 0], suffix[1][0, 0]]).mean(0)
    torch.testing.assert_close(attend_with_prefix(tiny, prefix, suffix)[0, 0, 0], mean)


def test_scale_and_no_gradients() -> None:
    query, prefix, suffix = parts((2, 2, 2, 9, 4, 16))
    found = attend_with_prefix(query.requires_grad_(), prefix, suffix, scale=0.7)
    torch.testing.assert_close(found, reference(query, prefix, suffix, scale=0.7).detach(), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_merging_by_hand() -> None:
    outputs = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([[torch.nan, torch.nan]]))
    totals = (torch.tensor([1e4]) + torch.tensor(3.0).log(), torch.tensor([1e4]), torch.tensor([-torch.inf]))
    torch.testing.assert_close(merge(outputs, totals), torch.tensor([[0.75, 1.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_in_transformers(queries: int, masked: bool) -> None:
    """With a query per head, four of which share a key, and its own mask for each query and row."""
    register(SHARED_PREFIX, prefix_attention)
    query, prefix, suffix = parts((3, 2, 4 * queries, 20, 6, 16))
    query = query.reshape(3, 8, queries, 16)
    mask = torch.ones(3, 1, queries, 26, dtype=torch.bool).tril(23)
    mask[1, :, :, 21] = False
    given = mask if masked or queries > 1 else None
    module: Any = SimpleNamespace(num_key_value_groups=4, is_causal=True, training=False)
    key: Any = suffix[0]
    key.shared_prefix = prefix
    found, _ = AttentionInterface()[SHARED_PREFIX](module, query, key, suffix[1], given, scaling=0.3)
    keys, values = (torch.cat([one.expand(3, -1, -1, -1), own], 2) for one, own in zip(prefix, suffix, strict=True))
    wanted, _ = sdpa_attention_forward(module, query, keys, values, given, scaling=0.3)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    assert found.is_contiguous() and found.shape == (3, queries, 8, 16)


def test_it_pays_for_long_prompts_of_many_rows() -> None:
    assert prefix_pays(8, 1024) and prefix_pays(32, 1024) and not prefix_pays(8, 128) and not prefix_pays(1, 10**6)
