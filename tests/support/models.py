"""Small random models and a tokenizer for them, for what depends on no weights."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 128
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def random_model(kind: str = "full", eos: int | list[int] = 1, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with full attention, or with a sliding window of 8 tokens."""
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "full":
        model = Qwen3ForCausalLM(Qwen3Config(**_SIZES))
    else:
        model = MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=8))
    # Larger weights make the random model less monotonous, so that tokens depend on what went before.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.generation_config.eos_token_id = eos
    return model.to(dtype).eval()


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a letter; the rest of the vocabulary are words that never occur."""
    names = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    names += [f"<{number}>" for number in range(len(names), VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
