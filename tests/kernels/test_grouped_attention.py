"""Grouped attention: equal to transformers in numbers and tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.engines.transformers.model_runner import can_be_ragged
from tersely.controller.types import Request, SamplingParams
from tersely.kernels.attention import GROUPED, grouped_attention

from ..support.models import letters, random_model


def states(heads: int, pairs: int, queries: int, dtype: torch.dtype, rows: int = 3, keys: int = 21) -> list[Tensor]:
    """A query that is a view of [rows, queries, heads, width], as in models; key and value."""
    generator = torch.Generator().manual_seed(heads * queries)
    query = torch.randn(rows, queries, heads, 16, generator=generator, dtype=dtype).transpose(1, 2)
    return [query, *(torch.randn(rows, pairs, keys, 16, generator=generator, dtype=dtype) for _ in range(2))]


def mask_of(rows: int, queries: int, keys: int) -> Tensor:
    """A causal mask with different padding and holes in each row."""
    mask = torch.ones(queries, keys).tril(keys - queries).bool()[None, None].repeat(rows, 1, 1, 1)
    for row in range(rows):
        mask[row, :, :, : row + 1] = False
        mask[row, :, :, 7 + row] = False
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "pairs"), [(4, 2), (14, 2), (6, 1), (4, 4)])
@pytest.mark.parametrize("queries", [1, 2, 7, 16, 17])
@pytest.mark.parametrize("masked", ["bool", "float", "none"])
def test_output_equals_transformers(dtype: torch.dtype, heads: int, pairs: int, queries: int, masked: str) -> None:
    query, key, value = states(heads, pairs, queries, dtype)
    seen = mask_of(3, queries, key.shape[2])
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
    mask = {"bool": seen, "float": bias, "none": None}[masked]
    module: Any = SimpleNamespace(num_key_value_groups=heads // pairs, is_causal=True, training=False)
    found, _ = grouped_attention(module, query, key, value, mask, scaling=0.3, dropout=0.0)
    wanted, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3, dropout=0.0)
    torch.testing.assert_close(found, wanted, atol=2e-6 if dtype is torch.float32 else 2e-2, rtol=1e-5)
    assert found.is_contiguous() and found.shape == (3, queries, heads, 16)


def test_other_cases_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = states(4, 2, 1, torch.float32)
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=True)
    asked: list[dict[str, Any]] = []

    def stock(*given: Any, **options: Any) -> tuple[Tensor, None]:
        asked.append(options)
        return given[1], None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", stock)
    for other in ({"dropout": 0.5}, {"position_bias": torch.zeros(1)}, {"output_attentions": True}):
        grouped_attention(module, query, key, value, None, **other)
    assert len(asked) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose four heads share two keys."""
    folder = tmp_path_factory.mktemp("shared")
    random_model(eos=126).save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


def test_grouped_decoding_equals_generate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_engine(folder).model.config._attn_implementation == "sdpa", "it is asked for"
    engine = load_engine(folder, grouped=True)
    assert engine.model.config._attn_implementation == GROUPED and can_be_ragged(engine.model)
    grouped = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, *given: Any, **options: Any) -> Tensor:
        grouped.append(query.shape[1] == key.shape[1] == 2)
        return plain(query, key, *given, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    prompts = [(5, 6, 7, 8), (9, 10), (11, 12, 13)]
    done = engine.generate([Request(prompt, 24) for prompt in prompts], SamplingParams(temperature=0))
    assert grouped.count(True) >= 2 * 20
    ids = torch.tensor([[0] * (4 - len(prompt)) + list(prompt) for prompt in prompts])
    options: Any = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    for model in (engine.model, AutoModelForCausalLM.from_pretrained(folder).eval()):
        wanted = model.generate(ids, attention_mask=(ids > 0).long(), **options)[:, 4:].tolist()
        assert [list(row.token_ids) for row in done] == [[t for t in row if t not in (0, 126)] for row in wanted]


def test_models_without_shared_keys_are_unchanged() -> None:
    assert load_engine("tersely-tiny-small", grouped=True).model.config._attn_implementation == "sdpa"
