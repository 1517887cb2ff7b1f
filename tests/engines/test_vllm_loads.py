"""The embedded models are ordinary checkpoints: a real vLLM loads them and decodes what transformers decodes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch

from tersely.evaluation.tasks.toy_problems import stream
from tersely.models import NAMES, get_model_path

if TYPE_CHECKING:
    from vllm import LLM

PROMPTS, NEW_TOKENS = 3, 160

pytestmark = pytest.mark.vllm


def _prompts(name: str) -> list[list[int]]:
    """Token ids of the first test problems, as a chat would send them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(name))
    chats = [[{"role": "user", "content": p.problem}] for p in islice(stream("test", 0), PROMPTS)]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]


def _greedy(name: str, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers decodes greedily, without padding and without the end token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(get_model_path(name), dtype=torch.float32).eval()
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    options = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": NEW_TOKENS}
    out = model.generate(ids, attention_mask=(ids != pad).long(), **options)
    rows = [row.tolist() for row in out[:, width:]]
    return [row[: row.index(end)] if end in row else row for row in rows]


# The large model and that for agents have one shape.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.attack) if n == "tersely-tiny-large" else n for n in NAMES]
)
def test_vllm_decodes_what_transformers_decodes(name: str, start_vllm: Callable[..., LLM]) -> None:
    from vllm import SamplingParams

    prompts = _prompts(name)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    outputs = start_vllm(name).generate([{"prompt_token_ids": p} for p in prompts], greedy, use_tqdm=False)
    ours = _greedy(name, prompts)
    for reference, output in zip(ours, outputs, strict=True):
        decoded = list(output.outputs[0].token_ids)
        if output.outputs[0].finish_reason == "stop":
            decoded = decoded[:-1]  # the end token
        assert decoded == reference
    assert any(len(row) < NEW_TOKENS for row in ours), "no prompt was ever answered: the model does not work"
