"""How far next tokens move: against the divergence of all chances."""

from __future__ import annotations

from math import exp
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tersely.kernels.quantization.calibration import cache_reference, kl_to_reference, perplexity
from tersely.kernels.quantization.calibration_text import sample_texts
from tersely.models import get_model_path


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(get_model_path("tersely-tiny-small")).eval()


@torch.inference_mode()
def test_divergence_is_that_of_all_chances_but_for_the_rarest(model: Any) -> None:
    rows = sample_texts(model, 6, 40, 0)
    expected, told = cache_reference(model, rows)
    assert told["perplexity"] == pytest.approx(perplexity(model, rows), rel=1e-5)
    apart, losses = kl_to_reference(model, rows, expected)
    assert apart == pytest.approx([0] * 6, abs=1e-6) and exp(fmean(losses)) == pytest.approx(told["perplexity"])
    own = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight += 0.03 * weight.std() * torch.randn_like(weight)
    whole = (own.exp() * (own - model(input_ids=rows).logits[:, :-1].log_softmax(-1))).sum(-1).mean().item()
    apart, losses = kl_to_reference(model, rows, expected)
    assert 0.9 * whole < fmean(apart) <= whole * 1.0001
    assert exp(fmean(losses)) == pytest.approx(perplexity(model, rows), rel=1e-5)
