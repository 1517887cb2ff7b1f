"""How requests to vLLM's server are translated."""

from __future__ import annotations

from typing import Any

import pytest

from tersely.controller.serving.errors import RequestError
from tersely.controller.serving.rules import RequestRules
from tersely.controller.serving.vllm_translation import CHAT, MESSAGES, translate

BODY = {"messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 4096}


def ask(path: str, **fields: Any) -> Any:
    return translate(path, {**BODY, **fields}, RequestRules(), "1-1.1")


@pytest.mark.parametrize(("effort", "tier"), [("low", "easy"), ("medium", "normal"), ("high", "hard"), ("max", "hard")])
def test_efforts_of_anthropic_clients_are_heard(effort: str, tier: str) -> None:
    mapping = ask(MESSAGES, output_config={"effort": effort, "format": None})
    assert mapping.control.effort == tier
    assert mapping.control.thinking_budget == ask(CHAT, reasoning_effort=effort).control.thinking_budget
    assert mapping.body["output_config"] == {"effort": effort, "format": None}


def test_an_effort_of_the_field_tersely_wins() -> None:
    assert ask(MESSAGES, output_config={"effort": "low"}, tersely={"effort": "hard"}).control.effort == "hard"
    assert ask(MESSAGES).control.effort == "normal"


def test_an_unknown_effort_names_its_field() -> None:
    with pytest.raises(RequestError) as caught:
        ask(MESSAGES, output_config={"effort": "huge"})
    assert caught.value.param == "output_config.effort"
