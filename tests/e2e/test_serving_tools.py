"""Tool calls in the replies of the server, on a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tersely.controller.serving.responses_schemas import ResponsesRequest

from ..support.serving import MODEL, QUESTION, Served, served, texts_of
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


FUNCTION = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_responses_have_tool_calls_and_take_their_outputs(client: Any) -> None:
    reply = client.responses.create(model=MODEL, input=QUESTION, tools=[FUNCTION])
    reasoning, message, *calls = reply.output
    assert reasoning.content[0].text == "I add them."
    assert message.content[0].text == reply.output_text == "Let me see."
    assert [(call.name, json.loads(call.arguments)) for call in calls] == EXPECTED
    assert len({call.call_id for call in calls}) == 2 and reply.tools[0].name == "add"
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "19"} for call in calls]
    again = client.responses.create(model=MODEL, input=[*reply.output, *outputs], tools=[FUNCTION])
    assert again.status == "completed"


def test_a_stream_of_responses_ends_with_the_tool_calls(client: Any) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, tools=[FUNCTION]) as stream:
        kinds = [event.type for event in stream]
        reply = stream.get_final_response()
    calls = [item for item in reply.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == EXPECTED
    assert kinds.count("response.function_call_arguments.done") == 2
    whole = client.responses.create(model=MODEL, input=QUESTION, tools=[FUNCTION], tool_choice="none")
    assert "<tool_call>" in whole.output_text


def test_items_of_responses_become_messages() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": '{"a": 1}'}
    items: Any = [
        {"role": "user", "content": "Add."},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "Let me see."},
        call,
        {**call, "call_id": "2", "arguments": "{broken"},
        {"type": "function_call_output", "call_id": "1", "output": "3"},
        call,
    ]
    messages = ResponsesRequest(model=MODEL, input=items).to_messages()
    _, assistant, tool, last = messages
    assert assistant["content"] == "Let me see." and assistant["reasoning_content"] == "Hm."
    assert [one["function"]["arguments"] for one in assistant["tool_calls"]] == [{"a": 1}, "{broken"]
    assert tool == {"role": "tool", "tool_call_id": "1", "content": "3"}
    assert last["content"] == "" and len(last["tool_calls"]) == 1
