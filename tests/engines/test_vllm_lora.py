"""vLLM with LoRA: its wrapper of the logits layer calls ours by name, and requests are controlled as without."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tersely.controller.vllm.engine import PROCESSOR

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = pytest.mark.vllm


def test_requests_are_controlled_where_lora_is_enabled(start_vllm: Callable[..., LLM], vllm_llm: LLM) -> None:
    from vllm import SamplingParams

    lora = start_vllm("tersely-tiny-small", logits_processors=(PROCESSOR,), enable_lora=True, max_loras=1)
    message = [
        {"role": "user", "content": "Kai has 9 shells. Kai finds 31 shells. Count the shells that belong to Kai."}
    ]
    for preset in ("off", "budget"):
        params = SamplingParams(temperature=0, max_tokens=120, extra_args={"tersely": {"preset": preset}})
        (found,), (plain,) = (llm.chat(message, params, use_tqdm=False) for llm in (lora, vllm_llm))
        assert found.outputs[0].token_ids == plain.outputs[0].token_ids
