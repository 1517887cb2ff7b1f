"""A model that thinks for ever: one small layer of random weights, an embedded model's tokenizer, a long context."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tersely.models import get_model_path

CONTEXT = 36_864


def write_endless_model(folder: Path) -> Path:
    """Write it; greedy, it never writes a marker or an end of its own."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small"))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    special = sorted(tokenizer.added_tokens_decoder)
    with torch.no_grad():
        model.lm_head.weight[special] = 0.0  # of the others, one is always above zero
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
