"""Calibration text from files and models, and KL divergence."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tersely.errors import OptionError
from tersely.kernels.quantization.calibration import (
    _mask_all_but_drawn,
    cache_reference,
    kl_to_reference,
    perplexity,
    sample_answers,
    sample_texts,
    tokenize_rows,
)
from tersely.models import get_model_path

from ..support.refusals import refused

SMALL = get_model_path("tersely-tiny-small")


def load(folder: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_text_from_files(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("Kai has 3 shells. " * 40)
    rows = tokenize_rows(plain, tokenizer, 5, 16)
    assert rows.shape == (5, 16)
    assert "Kai has" in tokenizer.decode(rows[4])
    lines.write_text(
        "\n".join(json.dumps({"problem": f"Kai has {n} shells.\u2028", "id": n}, ensure_ascii=False) for n in range(30))
    )
    assert "Kai has 0 shells." in tokenizer.decode(tokenize_rows(lines, tokenizer, 3, 16)[0])
    with refused(OptionError, "too_little_text"):
        tokenize_rows(plain, tokenizer, 5, 1000)
    lines.write_text("[1]")
    for bad in (lines, tmp_path / "missing.txt", tmp_path):
        with refused(OptionError):
            tokenize_rows(bad, tokenizer, 5, 16)


def test_sampled_texts_are_reproducible_and_likely() -> None:
    model = load(SMALL)
    text = sample_texts(model, 12, 48, 0)
    assert torch.equal(sample_texts(model, 12, 48, 0), text)
    assert not torch.equal(sample_texts(model, 12, 48, 1), text)
    assert perplexity(model, text) < 0.1 * perplexity(model, torch.randint(970, (4, 48)))


def test_tokens_are_drawn_by_their_probabilities() -> None:
    torch.manual_seed(0)
    chances, ids = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]), torch.zeros(20_000, 1, dtype=torch.int64)
    for temperature, expected in ((1.0, chances), (0.5, chances**2 / (chances**2).sum())):
        left = _mask_all_but_drawn(temperature, ids, chances.log().expand(20_000, 6)) == 0
        assert left.sum() == 20_000 and not left[:, chances == 0].any()
        assert torch.allclose(left.float().mean(0), expected, atol=0.015)
    sure = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]).bfloat16()
    assert torch.equal(_mask_all_but_drawn(1.0, ids[:2], sure), sure)


def test_a_model_answers_questions_in_its_template() -> None:
    model, tokenizer = load(SMALL), AutoTokenizer.from_pretrained(SMALL)
    asked = [f"Kai has {n} shells. Kai finds 3 shells. Count the shells." for n in range(20)]
    rows = sample_answers(model, tokenizer, asked, 6, 64, 0)
    assert rows.shape == (6, 64) and torch.equal(rows, sample_answers(model, tokenizer, asked, 6, 64, 0))
    written = tokenizer.decode(rows.flatten())
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False)
        for q in asked
    ]
    found = [written.find(prompt) for prompt in prompts[:3]]
    assert found == sorted(found) and found[0] == 0, "conversations in their order, nothing between them"
    first = written[len(prompts[0]) : found[1]]
    assert (
        first.endswith(tokenizer.decode([model.generation_config.eos_token_id]))
        or len(tokenizer(first).input_ids) == 64
    )
    with refused(OptionError, "too_little_text"):
        sample_answers(model, tokenizer, asked[:1], 6, 500, 0)
    tokenizer.chat_template = None
    with refused(OptionError, "no_chat_template"):
        sample_answers(model, tokenizer, asked, 6, 64, 0)


@torch.inference_mode()
def test_kl_of_the_top_tokens_is_close_to_that_of_all() -> None:
    model = load(SMALL)
    rows = sample_texts(model, 6, 40, 0)
    expected, report = cache_reference(model, rows)
    assert report["perplexity"] == pytest.approx(perplexity(model, rows), rel=1e-5)
    divergences, losses = kl_to_reference(model, rows, expected)
    assert divergences == pytest.approx([0] * 6, abs=1e-6) and exp(fmean(losses)) == pytest.approx(report["perplexity"])
    own = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight += 0.03 * weight.std() * torch.randn_like(weight)
    whole = (own.exp() * (own - model(input_ids=rows).logits[:, :-1].log_softmax(-1))).sum(-1).mean().item()
    divergences, losses = kl_to_reference(model, rows, expected)
    assert 0.9 * whole < fmean(divergences) <= whole * 1.0001
    assert exp(fmean(losses)) == pytest.approx(perplexity(model, rows), rel=1e-5)
