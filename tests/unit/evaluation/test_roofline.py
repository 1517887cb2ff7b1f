"""Shapes, FLOPs and rooflines against real models, torch's own counter and known figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tersely.errors import ModelError, OptionError
from tersely.evaluation.economics.flops import (
    ModelShape,
    decode_flops,
    generation_flops,
    load_shape,
    prefill_flops,
    read_shape,
    token_flops,
)
from tersely.evaluation.economics.roofline import (
    DEVICES,
    compute_roofline,
    custom_device,
    measure_device,
)
from tersely.models import NAMES, as_cache, find_cache, get_model_path

QWEN = {  # Qwen2.5-0.5B
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "dtype": "bfloat16",
}
TABLE = 151936 * 896


def qwen(**changes: Any) -> ModelShape:
    from transformers import Qwen2Config

    return read_shape(Qwen2Config(**{**QWEN, "tie_word_embeddings": True, **changes}))


def loaded(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(get_model_path(name), attn_implementation="eager").eval()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    shape, model = load_shape(name), loaded(name)
    assert shape.parameters == model.num_parameters()
    vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    assert shape.blocks + shape.head + vectors == shape.parameters == shape.read, "tied: the table is the head"
    assert shape.max_context == model.config.max_position_embeddings
    assert shape.dtype == "float32"


def test_parameters_of_a_half_billion_tied_and_not() -> None:
    tied, untied = qwen(), qwen(tie_word_embeddings=False)
    assert tied.parameters == tied.read == 494_032_768
    assert untied.parameters == 494_032_768 + TABLE
    assert untied.read == 494_032_768, "a table that is only looked up is not read"
    assert tied.blocks == untied.blocks
    assert tied.head == untied.head == TABLE
    assert (tied.kv_heads, tied.head_dim) == (2, 64)


def test_other_families_are_counted_too() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig

    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=500, n_positions=32)
    shape, model = read_shape(config), GPT2LMHeadModel(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.read == shape.parameters - 32 * 64, "positions are looked up"
    sliding = read_shape(
        MistralConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=100,
            sliding_window=8,
        )
    )
    assert sliding.windows == (8, 8)
    assert sliding.attended_positions(5) == 10
    assert sliding.attended_positions(100) == 16


def test_only_dense_decoders_are_accepted() -> None:
    from transformers import MambaConfig, Qwen3_5TextConfig, Qwen3MoeConfig

    for config, named in (
        (Qwen3MoeConfig(), "experts"),
        (MambaConfig(), "num_attention_heads"),
        (Qwen3_5TextConfig(), "linear_attention"),
    ):
        with pytest.raises(ModelError) as caught:
            read_shape(config, "a-model")
        assert caught.value.code == "not_a_dense_decoder" and named in str(caught.value)


def counted(model: Any, **inputs: Any) -> tuple[dict[str, int], Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(**inputs)
    return {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}, out


def test_flops_are_those_that_torch_counts() -> None:
    shape, model = load_shape("tersely-tiny-small"), loaded("tersely-tiny-small")
    prompt = 40
    found, out = counted(model, input_ids=torch.arange(prompt)[None] + 5, logits_to_keep=1, use_cache=True)
    attention = 4 * shape.heads * shape.head_dim * len(shape.windows)
    assert found["aten.mm"] == 2 * shape.blocks * prompt + 2 * shape.head
    assert found["aten.bmm"] == attention * prompt**2
    # Eager attention also computes what the causal mask then hides: of n * n products, n * (n + 1) / 2 are needed.
    assert prefill_flops(shape, prompt) == found["aten.mm"] + attention * prompt * (prompt + 1) / 2
    step, _ = counted(model, input_ids=torch.tensor([[7]]), **as_cache(model, find_cache(out)[1]))
    assert token_flops(shape, prompt + 1) == sum(step.values())
    assert decode_flops(shape, prompt, 2) == sum(step.values())


def test_flops_add_up() -> None:
    shape = qwen()
    assert decode_flops(shape, 100, 1) == decode_flops(shape, 100, 0) == 0
    assert decode_flops(shape, 100, 4) == sum(token_flops(shape, 100 + k) for k in (1, 2, 3))
    whole = prefill_flops(shape, 300)
    assert generation_flops(shape, 300, 50) == whole + decode_flops(shape, 300, 50)


def test_windows_bound_attention() -> None:
    narrow = qwen(use_sliding_window=True, sliding_window=16, max_window_layers=0)
    assert set(narrow.windows) == {16}
    one_by_one = sum(token_flops(narrow, n) - 2 * narrow.head for n in range(1, 101)) + 2 * narrow.head
    assert prefill_flops(narrow, 100) == one_by_one
    assert token_flops(narrow, 16) == token_flops(narrow, 1000) < token_flops(qwen(), 1000)


def test_decoding_a_half_billion_on_a_known_device() -> None:
    found = compute_roofline(qwen(), DEVICES["H100"], "bfloat16", batch_size=1, context=1024)
    assert found.decode.bytes - found.cache_bytes == 988_065_536, "988 MB of weights a token"
    assert found.cache_bytes == 1024 * 24 * 2 * 2 * 64 * 2
    assert found.decode.bound == "memory"
    assert found.decode.tokens_per_second == pytest.approx(3.35e12 / (988_065_536 + 12_582_912))
    assert found.decode.intensity == pytest.approx(1, rel=0.2)
    assert found.prefill.bound == "compute"
    assert found.prefill.seconds == pytest.approx(prefill_flops(qwen(), 1024) / 989e12)
    assert found.ridge_batch == pytest.approx(295, abs=1)
    assert found.fits


def test_a_larger_batch_moves_the_bound() -> None:
    shape, device = qwen(), custom_device(100, 1000, "bfloat16")
    assert device is not None
    near, far = (compute_roofline(shape, device, "bfloat16", batch, 1).decode for batch in (95, 115))
    assert (near.bound, far.bound) == ("memory", "compute")
    assert compute_roofline(shape, device, "bfloat16", 1, 1).ridge_batch == pytest.approx(100, rel=0.01)
    one = compute_roofline(shape, device, "bfloat16", 1, 1).decode.tokens_per_second
    assert near.tokens_per_second == pytest.approx(95 * one, rel=0.01), "further samples are nearly free"


def test_smaller_weights_are_read_faster_and_computed_in_16_bits() -> None:
    at = {d: compute_roofline(qwen(), DEVICES["H100"], d, 1, 1) for d in ("float32", "bfloat16", "int8", "int4")}
    sizes = [found.weight_bytes / 494_032_768 for found in at.values()]
    assert sizes == [4, 2, 1, 0.53125]
    assert at["int4"].cache_bytes == at["bfloat16"].cache_bytes == at["float32"].cache_bytes / 2
    assert at["int4"].decode.tokens_per_second == pytest.approx(
        2 / 0.53125 * at["bfloat16"].decode.tokens_per_second, rel=0.01
    )
    assert at["int8"].ridge_batch == pytest.approx(at["bfloat16"].ridge_batch / 2)


def test_fits_is_unknown_without_a_memory_size() -> None:
    assert compute_roofline(qwen(), DEVICES["RTX-4090"], "bfloat16", 64, 32_768).fits is False
    device = custom_device(1, 1, "bfloat16")
    assert device is not None and compute_roofline(qwen(), device, "bfloat16", 64, 32_768).fits is None


def test_this_machine_can_be_measured() -> None:
    found = measure_device("float32", 4e6)
    assert 1e9 < found.flops["float32"] < 1e15
    assert 5e8 < found.bandwidth < 1e13
    assert "4.0 MB" in found.source
    with pytest.raises(OptionError) as caught:
        found.peak("bfloat16")
    assert caught.value.code == "unknown_name"


def test_custom_devices_need_both_numbers() -> None:
    assert custom_device(None, None, "float32") is None
    for tflops, gbytes in ((100.0, None), (None, 1.0), (0.0, 1.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(OptionError):
            custom_device(tflops, gbytes, "float32")
