"""A budget that is a ceiling, in a worker of vLLM: which prompts it watches, and whether grammars bind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tersely.controller.vllm.request_control import KEY
from tersely.controller.vllm.row_table import ControlledRow

from ...support.word_tokenizer import WordTokenizer
from .test_vllm_trials import make_context

CEILING: dict[str, Any] = {KEY: {"policies": {"budget": {}}, "thinking_budget": 40, "held": True}}
BUDGET: dict[str, Any] = {KEY: {key: value for key, value in CEILING[KEY].items() if key != "held"}}


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("Say <think> first. EOS a question. EOS ", "before"),
        ("Say <think> and </think>. A question. ", "before"),
        ("A question. EOS <think>\n", "thinking"),
        ("A question. EOS <think>\nA", "thinking"),
        ("A question. EOS <think>\n" + "Let me see. " * 50, "thinking"),
        ("A question. EOS <think> so </think> Five. EOS Another. EOS ", "before"),
    ],
)
def test_thinking_that_a_prompt_has_begun_is_under_control(prompt: str, state: str) -> None:
    words = WordTokenizer()
    for control in (BUDGET, CEILING):
        made = make_context(words).make_controller(control, words(prompt)["input_ids"], 500)
        assert made is not None and made.controller is not None and made.controller.state.value == state


def test_an_answer_is_watched_where_the_budget_is_a_ceiling() -> None:
    words = WordTokenizer()
    context, prompt = make_context(words), words("A question. <think>\n\n</think>\n\n")["input_ids"]
    assert context.make_controller(BUDGET, prompt, 500) is None
    made = context.make_controller(CEILING, prompt, 500)
    assert made is not None
    output = words("No: <think>" + "one two three. " * 20)["input_ids"]
    assert any(made.read(output[:size]) is not None for size in range(1, len(output)))


@pytest.mark.parametrize(
    ("parser", "in_reasoning", "held", "bound"),
    [("qwen3", False, True, True), ("", False, True, False), ("", False, False, True), ("qwen3", True, True, False)],
)
def test_a_ceiling_is_above_a_grammar_that_holds_within_the_thinking(
    parser: str, in_reasoning: bool, held: bool, bound: bool
) -> None:
    words = WordTokenizer()
    outputs = SimpleNamespace(reasoning_parser=parser, enable_in_reasoning=in_reasoning)
    context = make_context(words, outputs=outputs)
    made = context.make_controller(CEILING if held else BUDGET, words("a <think>")["input_ids"], 500)
    assert made is not None
    assert ControlledRow(made, [], SimpleNamespace(structured_outputs={"regex": "[^<]*"})).bound is bound
    assert not ControlledRow(made, [], SimpleNamespace(structured_outputs=None)).bound
