"""A model that ends its turn within its thinking gets an answer, unless the turn ends with a tool call."""

from __future__ import annotations

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.policies.exits import BudgetForcing
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.types import KEEP
from tersely.controller.vllm.request_controller import RequestController

from ...support.word_tokenizer import WordTokenizer

CALLS = [
    '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>\n",
    "<minimax:tool_call>\n<invoke name='add'></invoke>\n</minimax:tool_call>",
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_calls_section_end|>",
    '[TOOL_CALLS]add[ARGS]{"a": 1}',
]


def start() -> tuple[Controller, TokenizerAdapter]:
    tokenizer = WordTokenizer()
    tokenizer.eos_token_id = tokenizer("ENDOFTURN")["input_ids"][-1]
    codec = TokenizerAdapter(tokenizer)
    markers = Markers("<think>", "</think>")
    return Controller([BudgetForcing()], codec, markers, Budget("normal", 500)), codec


@pytest.mark.parametrize(
    ("text", "answers"), [("So it is 5.", True), ("I call `add`.", True), *((c, False) for c in CALLS)]
)
def test_the_end_of_a_turn(text: str, answers: bool) -> None:
    controller, codec = start()
    inside = RequestController(controller, (codec.tokenizer.eos_token_id,))
    for token in codec.encode(f"I need a sum. {text}"):
        assert controller.observe(token) is KEEP
    assert (inside.closing_starts() is not None) == answers
    directive = controller.observe(codec.tokenizer.eos_token_id)
    assert (codec.decode(directive.force).strip() == "</think>") == answers
