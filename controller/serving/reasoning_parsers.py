"""Which of vLLM's reasoning parsers fits a model: by its architecture, and none rather than a wrong one.

A parser for models that always think returns a whole reply without a closing marker as thinking. It must therefore not
be given to a model whose thinking is switched on by another name than `enable_thinking`.
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
    "granite": "granite",
    "granitemoehybrid": "granite",
    "hunyuan_v1_moe": "hunyuan_a13b",
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
_ALWAYS = ("qwen2", "llama")
"""Architectures of distilled models and QwQ, which think always where their template writes `<think>`."""


def choose_reasoning_parser(model_type: str, template: str, opening: str, known: Collection[str]) -> str | None:
    """The parser for a model, None if there is none for it in `known`, those that the installed vLLM has.

    `template` is the chat template, `opening` the marker that opens the thinking.
    """
    name = BY_MODEL_TYPE.get(model_type)
    if name is None and opening == "<think>":
        name = _choose_for_think_tags(model_type, template)
    return name if name in known else None


def _choose_for_think_tags(model_type: str, template: str) -> str | None:
    if model_type == "deepseek_v3":  # R1 and V3.1 share it; only the latter can be asked not to think
        return "deepseek_v3" if "thinking" in template.replace("</think>", "") else "deepseek_r1"
    if "/no_think" in template and "enable_thinking" not in template:
        return None
    if model_type in _QWEN or "enable_thinking" in template:
        return "qwen3"
    return "deepseek_r1" if model_type in _ALWAYS else None
