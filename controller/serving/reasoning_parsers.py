"""Which of vLLM's reasoning parsers fits a model: by its architecture, and none rather than a wrong one.

A parser for models that always think returns a whole reply without a closing marker as thinking. It must therefore not
be given to a model whose thinking is switched off by what the parser does not hear, such as `/no_think`.
"""

from __future__ import annotations

from collections.abc import Collection

BY_MODEL_TYPE = {
    "cohere2": "cohere_command3",
    "deepseek_v32": "deepseek_v3",
    "deepseek_v4": "deepseek_v4",
    "ernie4_5_moe": "ernie45",
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "glm4_moe_lite": "glm45",
    "gpt_oss": "openai_gptoss",
    "kimi_k2": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "minimax_m3": "minimax_m3",
    "mistral": "mistral",
    "mistral3": "mistral",
    "nemotron_h": "nemotron_v3",
    "olmo3": "olmo3",
    "plamo3": "plamo3",
    "seed_oss": "seed_oss",
    "step3": "step3",
    "step3p5": "step3p5",
}
"""Parsers of vLLM 0.32 and 0.33 by the model type of `config.json`."""
_QWEN = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
_ALWAYS = ("qwen2", "llama", "phi3")
"""Architectures of distilled models, QwQ and Phi-4-reasoning, which think always where their template has `<think>`."""
_GRANITE = ("granite", "granitemoe", "granitemoehybrid")
_UNHEARD = ("hunyuan_v1_moe",)
"""Architectures whose parser in vLLM wants an answer between tags, which a closing of ours does not write."""


def choose_reasoning_parser(
    model_type: str, template: str, opening: str, known: Collection[str], thinks: bool = True
) -> str | None:
    """The parser for a model, None if there is none for it in `known`, those that the installed vLLM has.

    `template` is the chat template, `opening` the marker that opens the thinking, and `thinks` whether the model thinks
    where a request says nothing.
    """
    if model_type in _UNHEARD or "/no_think" in template:
        return None
    name = BY_MODEL_TYPE.get(model_type)
    if name is None and opening == "<think>":
        name = _choose_for_think_tags(model_type, template, thinks)
    return name if name in known else None


def _choose_for_think_tags(model_type: str, template: str, thinks: bool) -> str | None:
    if model_type == "deepseek_v3":  # R1 and V3.1 share it; only the latter can be asked not to think
        return "deepseek_v3" if "thinking" in template.replace("</think>", "") else "deepseek_r1"
    if model_type in _GRANITE:
        return "granite_thinking_parser" if "enable_thinking" in template else None
    if model_type in _QWEN or "enable_thinking" in template:
        return "qwen3" if thinks else "deepseek_v3"  # which takes a reply for an answer unless thinking was asked for
    return "deepseek_r1" if model_type in _ALWAYS else None
