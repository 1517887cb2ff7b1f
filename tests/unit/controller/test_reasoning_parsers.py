"""vLLM's reasoning parser by model: the right one, or none."""

from __future__ import annotations

import pytest

from tersely.controller.serving.reasoning_parsers import BY_MODEL_TYPE, choose_reasoning_parser

THINKS = "{{ '<think>\n' }}"
SWITCH = "{% if enable_thinking is false %}</think>{% endif %}"
KNOWN = {"qwen3", "deepseek_r1", "deepseek_v3", *BY_MODEL_TYPE.values()}


@pytest.mark.parametrize(
    ("model_type", "template", "opening", "parser"),
    [
        ("qwen3", SWITCH, "<think>", "qwen3"),
        ("qwen3", THINKS, "<think>", "qwen3"),
        ("qwen2", THINKS, "<think>", "deepseek_r1"),  # QwQ, R1-Distill-Qwen
        ("llama", THINKS, "<think>", "deepseek_r1"),  # R1-Distill-Llama
        ("deepseek_v3", THINKS, "<think>", "deepseek_r1"),
        ("deepseek_v3", "{% if thinking %}<think>{% endif %}", "<think>", "deepseek_v3"),
        ("glm4_moe", SWITCH, "<think>", "glm45"),
        ("nemotron_h", "{% if '/no_think' in system %}", "<think>", "nemotron_v3"),
        ("smollm3", "{% if '/no_think' in system %}", "<think>", None),
        ("unheard_of", THINKS, "<think>", None),
        ("unheard_of", SWITCH, "<think>", "qwen3"),
        ("unheard_of", "", "<reasoning>", None),
        ("gpt_oss", "", "<|channel|>analysis<|message|>", "openai_gptoss"),
        ("mistral3", "", "[THINK]", "mistral"),
    ],
)
def test_the_parser_of_a_model(model_type: str, template: str, opening: str, parser: str | None) -> None:
    assert choose_reasoning_parser(model_type, template, opening, KNOWN) == parser
    assert choose_reasoning_parser(model_type, template, opening, ()) is None


@pytest.mark.vllm
def test_the_installed_vllm_has_these_parsers() -> None:
    reasoning = pytest.importorskip("vllm.reasoning")
    assert set(reasoning.ReasoningParserManager.list_registered()) >= KNOWN
