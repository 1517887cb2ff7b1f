"""Which prompts are refused by their length, and how much of one is tokenized for that."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.errors import RequestError
from tersely.controller.serving.limits import PromptLimit

LIMIT = 100
LONG = "hello " * 5_000


class Counting:
    """The embedded tokenizer; `most` is the longest text that it was given."""

    def __init__(self) -> None:
        self.tokenizer, self.most = load_engine("tersely-tiny-small").tokenizer, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.most = max(self.most, len(text))
        return self.tokenizer(text, **options)


def check(messages: Any, rendered: Any = (), times: int = 1) -> int:
    """Characters of the longest text that was tokenized; raises RequestError."""
    tokenizer = Counting()
    asyncio.run(PromptLimit(tokenizer, LIMIT).check(messages, rendered, "messages", times))
    return tokenizer.most


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        (LONG, ()),
        (user(LONG), ()),
        (user("\n" * 5_000), ()),
        (user([{"type": "text", "text": "1 + 1"}] * 200), ()),
        ([{"role": "assistant", "content": LONG}, *user("1 + 1")], ()),
        ([{"role": "assistant", "tool_calls": [{"function": {"arguments": LONG}}]}], ()),
        ([{"role": "assistant", "content": [{"type": "tool_use", "input": {"code": [LONG]}}]}], ()),
        ([{"role": "user", "content": [{"type": "tool_result", "content": [{"text": LONG}]}]}], ()),
        ([{"type": "function_call_output", "output": LONG}], ()),
        (user("1 + 1"), [{"function": {"parameters": {"enum": [LONG]}}}]),
        (user("\ud800" * 5_000), ()),
    ],
    ids=lambda given: str(given)[:40],
)
def test_a_prompt_that_is_too_long_is_refused(messages: Any, rendered: Any) -> None:
    with pytest.raises(RequestError) as caught:
        check(messages, rendered)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_no_more_is_tokenized_than_tells() -> None:
    tokenizer = Counting()
    with pytest.raises(RequestError):
        asyncio.run(PromptLimit(tokenizer, LIMIT).check(user(LONG), (), "messages"))
    assert 0 < tokenizer.most <= 16 * LIMIT < len(LONG)
    assert check(user("1 + 1")) == 0


def test_what_templates_leave_out_does_not_count() -> None:
    spread = json.dumps({"a": [1, 2]}, indent=90)
    check([{"role": "assistant", "content": f"<think>{LONG}</think>4", "reasoning": LONG}, *user("1 + 1")])
    check([{"role": "assistant", "tool_calls": [{"id": LONG, "function": {"name": "f", "arguments": spread}}]}])
    check([{"type": "reasoning", "content": [{"text": LONG}]}])
    check(user([{"type": "image_url", "image_url": {"url": LONG}}, {"type": "text", "text": "1 + 1"}]))


def test_a_prompt_to_be_truncated_may_be_longer() -> None:
    check(user("hello " * 80), times=4)
    with pytest.raises(RequestError):
        check(user(LONG), times=4)
