"""What vLLM's model runners give a logits processor: its configuration, and the buffers of the second runner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def make_vllm_config(folder: str, **more: Any) -> Any:
    """What a processor reads of vLLM's configuration for a model."""
    from transformers import AutoConfig, GenerationConfig

    known = AutoConfig.from_pretrained(folder)
    model = SimpleNamespace(
        model=folder,
        tokenizer=folder,
        tokenizer_revision=None,
        trust_remote_code=False,
        served_model_name=None,
        hf_text_config=known,
        try_get_generation_config=GenerationConfig.from_pretrained(folder).to_diff_dict,
        get_vocab_size=lambda: known.vocab_size,
    )
    return SimpleNamespace(**{"model_config": model, "speculative_config": None, "additional_config": {}} | more)


class Buffers:
    """The buffers of the second model runner, as it keeps them."""

    def __init__(self, slots: int, length: int) -> None:
        self.device, self.max_num_reqs = torch.device("cpu"), slots
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(slots, length, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))
        self.prefill_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))
        self.total_len = SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32))

    def fill(self, slot: int, prompt: list[int], output: list[int]) -> None:
        ids = [*prompt, *output]
        self.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.prompt_len.np[slot], self.prefill_len.np[slot] = len(prompt), len(ids)
        self.total_len.gpu[slot] = len(ids)

    def append(self, slot: int, token: int) -> None:
        length = int(self.total_len.gpu[slot])
        self.all_token_ids.gpu[slot, length] = token
        self.total_len.gpu[slot] = length + 1
