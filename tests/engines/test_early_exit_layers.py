"""Layers that tokens skip: off they change nothing, on they leave later tokens the right keys, in every family."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.engines.transformers.research.early_exit import FAMILIES, early_exit
from tersely.errors import CapabilityError, OptionError
from tersely.models import as_cache

from ..support.models import random_model
from ..support.refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[family](**SIZES, attn_implementation="sdpa")
    if family == "mistral":
        config.sliding_window = None
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


def _answer(chosen: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    return chosen


@torch.no_grad()
def stepwise(model: PreTrainedModel, ids: torch.Tensor, goes: torch.Tensor, layer: int) -> torch.Tensor:
    """Logits [rows, length, vocabulary] of tokens that are fed one by one, some of which leave."""
    cache, found = DynamicCache(config=model.config), []
    for place in range(ids.shape[1]):
        mask = goes[:, place : place + 1]
        chosen = mask if bool(mask.any()) else None
        with early_exit(model, layer, lambda h: 0.9 * h, partial(_answer, chosen)):
            found.append(model(ids[:, place : place + 1], **as_cache(model, cache), use_cache=True).logits)
    return torch.cat(found, dim=1)


def test_every_family_has_a_model_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_layers_hold_the_keys_they_would_make_themselves(family: str) -> None:
    """One row at a time the projections alone are run; in one forward over all tokens, the layers are."""
    model = model_of(family)
    torch.manual_seed(1)
    ids, goes = torch.randint(0, 64, (1, 12)), torch.rand(1, 12) < 0.5
    assert 3 < goes.sum() < 9
    for layer in (1, 2, 3):
        with torch.no_grad(), early_exit(model, layer, lambda h: 0.9 * h, lambda h: goes):
            whole = model(ids).logits
        torch.testing.assert_close(stepwise(model, ids, goes, layer), whole, rtol=1e-4, atol=1e-4)


def test_those_that_stay_read_exact_keys_where_one_layer_is_skipped() -> None:
    model = model_of("qwen3")
    torch.manual_seed(2)
    ids, goes = torch.randint(0, 64, (3, 12)), torch.rand(3, 12) < 0.5
    goes[:, 5] = True  # a step that all leave, the others are mixed
    with torch.no_grad():
        full = model(ids).logits
    found = stepwise(model, ids, goes, 3)
    torch.testing.assert_close(found[~goes], full[~goes], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[goes], full[goes], atol=0.1)
    deeper = stepwise(model, ids, goes, 1)
    assert not torch.allclose(deeper[~goes], full[~goes], atol=0.1), "elsewhere they are those of another state"


def test_layers_that_do_nothing_may_be_left_out() -> None:
    model = model_of("qwen3")
    with torch.no_grad():
        for block in model.model.layers[2:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    ids = torch.randint(0, 64, (2, 10))
    every = torch.ones(2, 10, dtype=torch.bool)
    with torch.no_grad():
        full = model(ids).logits
        with early_exit(model, 2, lambda h: h, lambda h: every):
            early = model(ids).logits
    torch.testing.assert_close(early, full)


def test_the_model_is_left_as_it_was_and_others_are_refused() -> None:
    model = model_of("llama")
    with suppress(ZeroDivisionError), early_exit(model, 1, lambda h: h, lambda h: None):
        assert all("forward" in vars(block) for block in model.model.layers[1:])
        _ = 1 / 0
    assert not any("forward" in vars(block) or block._forward_hooks for block in model.model.layers)
    with refused(OptionError):
        early_exit(model, 4, lambda h: h, lambda h: None).__enter__()
    other = random_model()
    other.config.model_type = "gpt2"
    with refused(CapabilityError):
        early_exit(other, 1, lambda h: h, lambda h: None).__enter__()
    assert "shortcut" not in TransformersEngine(other, None).capabilities
