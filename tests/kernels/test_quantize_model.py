"""Quantization of models: calibration, quality, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
)

from tersely.errors import ModelError, OptionError
from tersely.kernels.quantization import Scheme, W4A8Linear, calibration, quantize_model
from tersely.kernels.quantization.calibration import capture_inputs, perplexity, sample_texts
from tersely.kernels.w4a8_layout import PackedLayout
from tersely.models import get_model_path

from ..support.mapped import HAS_HUGE_PAGES, is_in_huge_pages
from ..support.models import random_model
from ..support.refusals import refused

SMALL = get_model_path("tersely-tiny-small")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Text of the small model."""
    return sample_texts(load(SMALL), 12, 48, 0)


def load(folder: Path | str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("full", [False, True])
def test_inputs_are_captured(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_STRIPE", 48)
    linear, x = nn.Linear(100, 3), torch.randn(4, 5, 100)
    with capture_inputs({"a": linear}, 64, full=full) as seen:
        linear(x[:2])
        linear(x[2:])
        linear(x[:0])
    linear(torch.full((1, 100), 1e6))  # no longer captured

    def products(rows: Tensor) -> Tensor:
        if full:
            return rows.T @ rows
        padded = torch.nn.functional.pad(rows, (0, 28))
        return torch.stack([part.T @ part for part in padded.split(64, dim=1)])

    alike = x.flatten(0, 1) / x.flatten(0, 1).norm(dim=1, keepdim=True)
    torch.testing.assert_close(seen["a"].gram, products(alike))
    torch.testing.assert_close(seen["a"].highest, x.abs().amax(dim=(0, 1)))
    scale = torch.rand(100) + 0.5
    torch.testing.assert_close(seen["a"].scaled(scale).gram, products(alike * scale))


def test_perplexity_by_hand() -> None:
    model, rows = random_model(), torch.randint(3, 100, (3, 9))
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    expected = (-logits.gather(2, rows[:, 1:, None]).mean()).exp().item()
    assert perplexity(model, rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", [Scheme(64), Scheme(128, "int8", True), Scheme(32, "int4")], ids=str)
def test_a_quantized_model_is_close_to_the_original(scheme: Scheme, text: Tensor) -> None:
    model = load(SMALL)
    before = perplexity(model, text[:4])
    done = quantize_model(model, text[4:], scheme)
    assert perplexity(model, text[:4]) < 1.25 * before
    kinds = {name: type(m) for name, m in model.named_modules() if name.endswith(("proj", "head"))}
    assert set(kinds.values()) == {W4A8Linear}
    assert {layer["bits"] for layer in done.layers} == ({4, 8} if scheme.head in ("preview", "int8") else {4})
    assert len(done.layers) == 29
    assert all(0 < layer["error"] < 0.05 for layer in done.layers)
    assert all(layer["error"] <= layer.get("error of plain rounding", 1) for layer in done.layers)
    # Embeddings in float32 are an eighth of the weights, and the head is no longer shared with them.
    assert done.bytes_after < 0.4 * done.bytes_before


def test_without_text_no_input_is_scaled() -> None:
    model = load(SMALL)
    done = quantize_model(model, None, Scheme(smooth=True))
    assert {layer["scaled inputs"] for layer in done.layers} == {0}
    assert isinstance(model.lm_head, W4A8Linear)
    assert model.lm_head.layout is PackedLayout.PLANES
    assert "8-bit weights in two planes" in repr(model.lm_head)


def test_heads_in_planes_and_bytes_have_the_same_weights(text: Tensor) -> None:
    planes, whole = load(SMALL), load(SMALL)
    quantize_model(planes, None, Scheme())
    quantize_model(whole, None, Scheme(head="int8"))
    assert torch.equal(planes.lm_head.dequantized(), whole.lm_head.dequantized())
    assert perplexity(planes, text[:4]) == pytest.approx(perplexity(whole, text[:4]), rel=2e-3)


@pytest.mark.parametrize(
    ("keys", "wanted"), [("auto", PackedLayout.BYTES), ("int8", PackedLayout.BYTES), ("int4", PackedLayout.GRAINS)]
)
def test_layout_of_shared_keys(keys: str, wanted: PackedLayout) -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    own = {name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    quantize_model(model, None, Scheme(32, keys=keys))
    attention = model.model.layers[0].self_attn
    assert (attention.k_proj.layout, attention.v_proj.layout) == (wanted, wanted)
    assert (attention.q_proj.layout, attention.o_proj.layout) == (PackedLayout.GRAINS, PackedLayout.GRAINS)
    off = {n: (m.dequantized() - own[n]).norm() / own[n].norm() for n, m in model.named_modules() if n in own}
    assert (off["model.layers.0.self_attn.k_proj"] < 0.01) == (wanted is PackedLayout.BYTES)


def test_save_and_load(tmp_path: Path) -> None:
    sizes: Any = {"vocab_size": 100, "hidden_size": 72, "intermediate_size": 90, "num_hidden_layers": 2}
    # Queries, keys and values of this one have biases, and no size is a whole number of groups or tiles.
    config = Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    rows = torch.randint(100, (4, 20))
    quantize_model(model, rows, Scheme(32, smooth=True))
    model.save_pretrained(tmp_path / "a")
    again = load(tmp_path / "a")
    assert again.dtype == torch.bfloat16
    assert not again.config.tie_word_embeddings
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[name]) and t.dtype == theirs[name].dtype for name, t in ours.items())
    assert theirs["model.layers.0.self_attn.q_proj.channel_scale"].dtype == torch.float32
    layers = [module for module in again.modules() if isinstance(module, W4A8Linear)]
    assert layers and all(is_in_huge_pages(p) == HAS_HUGE_PAGES for layer in layers for p in layer.parameters())
    with torch.no_grad():
        assert torch.equal(model(rows).logits, again(rows).logits)
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()


def test_unsupported_models_are_refused() -> None:
    twice = random_model()
    quantize_model(twice)
    with refused(ModelError, "already_quantized"):
        quantize_model(twice)
    sizes: Any = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    experts = OlmoeForCausalLM(OlmoeConfig(**sizes, num_attention_heads=2, num_experts=8, pad_token_id=0))
    with refused(ModelError, "too_few_linear_layers"):
        quantize_model(experts)
    broken = random_model()
    broken.model.layers[0].mlp.up_proj.weight.data[3, 3] = torch.nan
    with refused(ModelError, "weights_not_finite"):
        quantize_model(broken)
    scaled = random_model()
    scaled.config.logits_scaling = 8.0
    with refused(ModelError, "logits_transformed"):
        quantize_model(scaled)
    quantize_model(scaled, scheme=Scheme(head="int8"))
    for wrong in ({"group_size": 48}, {"head": "int9"}, {"keys": "in4"}):
        with refused(OptionError, "unknown_name"):
            Scheme(**wrong)  # type: ignore[arg-type]
    fused = Phi3ForCausalLM(Phi3Config(**sizes, num_attention_heads=2, pad_token_id=0))
    with refused(ModelError, "no_key_layers"):
        quantize_model(fused, scheme=Scheme(keys="int8"))
