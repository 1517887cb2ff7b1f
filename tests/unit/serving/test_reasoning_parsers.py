"""vLLM's reasoning parser by model: the right one, or none; and the table of families in the docs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tersely.controller.serving.vllm_launcher import BY_MODEL_TYPE, choose_reasoning_parser
from tersely.errors import MarkerError

THINKS = "{{ '<think>\n' }}"
SWITCH = "{% if enable_thinking is false %}</think>{% endif %}"
KNOWN = {"qwen3", "deepseek_r1", "deepseek_v3", "granite_thinking_parser", *BY_MODEL_TYPE.values()}


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
        ("nemotron_h", "{% if '/no_think' in system %}", "<think>", None),
        ("nemotron_h", SWITCH, "<think>", "nemotron_v3"),
        ("nemotron-nas", "{% if '/no_think' in system %}{% set enable_thinking = false %}", "<think>", None),
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


ROOT = Path(__file__).resolve().parents[3]


def load_families() -> Any:
    """The script `benchmarks/model_families.py`, whose families are data."""
    spec = importlib.util.spec_from_file_location("model_families", ROOT / "benchmarks" / "model_families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


FAMILIES = load_families()
UNTESTED = ("openai_gptoss", "cohere_command3", "olmo3")
"""These parsers need vLLM's reading of harmony, a package of Cohere's, and the model's own vocabulary."""


def test_the_documented_table_is_what_the_command_prints() -> None:
    assert FAMILIES.make_table() in (ROOT / "docs" / "VLLM.md").read_text()


def read_reply(parser: str, family: Any, markers: Any, given: Any, state: str) -> tuple[str | None, str | None]:
    """What vLLM's parser makes of a whole reply that was closed by us."""
    reasoning = pytest.importorskip("vllm.reasoning")
    options = {key: value for key, value in given.items() if key != "system"}
    request = SimpleNamespace(chat_template_kwargs=options, tools=None, tool_choice="none", include_reasoning=True)
    made = reasoning.ReasoningParserManager.get_reasoning_parser(parser)(
        family.tokenizer(), chat_template_kwargs=options
    )
    opening = {"before": f"{markers.open}\n", "thinking": ""}
    reply = (
        "It is 4." if state == "answer" else f"{opening[state]}I add.\n{markers.close}{markers.close_suffix}It is 4."
    )
    thinking, answer = made.extract_reasoning(reply, request)
    return thinking, answer


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # vLLM's own imports
@pytest.mark.parametrize("family", FAMILIES.FAMILIES, ids=lambda family: family.name)
def test_the_parser_gives_the_answer_as_content(family: Any) -> None:
    try:
        facts = FAMILIES.examine(family)
    except MarkerError:
        return
    if facts.parser is None or facts.parser in UNTESTED:
        return
    for given, state in facts.states:
        reasoning, content = read_reply(facts.parser, family, facts.markers, given, state)
        assert (content or "").strip() == "It is 4.", (given, state)
        assert (reasoning or "").strip() == ("" if state == "answer" else "I add."), (given, state)
