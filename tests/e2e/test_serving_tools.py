"""Tool calls in the replies of the server, on a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.serving import Served, served, texts_of
from ..support.text_engine import TextEngine, format_call

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
OUTPUT = "I add them.\n</think>\n\nLet me see.\n" + format_call("add", a=12, b=7) + "\n" + format_call("add", a=1, b=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(TextEngine(lambda prompt: OUTPUT)) as running:
        yield running


def names_of(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls]


EXPECTED = [("add", {"a": 12, "b": 7}), ("add", {"a": 1, "b": 2})]


def test_tool_calls_have_openais_form(server: Served) -> None:
    (choice,) = server.answered(tools=TOOLS)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert choice["message"]["reasoning_content"] == "I add them."
    assert names_of(choice["message"]["tool_calls"]) == EXPECTED
    assert len({one["id"] for one in choice["message"]["tool_calls"]}) == 2


def test_a_stream_does_not_show_tool_calls_as_text(server: Served) -> None:
    from ..support.serving import body, chunks_of

    fields = body(tools=TOOLS, stream=True)
    with server.http.stream("POST", "/v1/chat/completions", json=fields) as response:
        chunks = chunks_of(response.iter_lines())
    assert texts_of(chunks) == ("I add them.", "Let me see.")
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [one for delta in deltas for one in delta.get("tool_calls", ())]
    assert [one["index"] for one in calls] == [0, 1]
    assert names_of(calls) == EXPECTED
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_malformed_or_unrequested_calls_stay_text(server: Served) -> None:
    (choice,) = server.answered()["choices"]
    assert choice["finish_reason"] == "stop"
    assert "<tool_call>" in choice["message"]["content"]
    assert "tool_calls" not in choice["message"]
    (choice,) = server.answered(tools=TOOLS, stop=['"b"'])["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].startswith("Let me see.\n<tool_call>")
