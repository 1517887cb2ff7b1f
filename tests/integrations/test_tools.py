"""Tool calls and structured output of `ChatTersely`, on a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from tersely.controller.integrations.langchain.chat_model import ChatTersely
from tersely.controller.integrations.langchain.messages import schema_error
from tersely.errors import CapabilityError, OptionError

from ..support.text_engine import TextEngine, format_call, tokenizer


def chat(output: str | Callable[[str], str], **options: Any) -> ChatTersely:
    """A chat model with this output, or that of a function of the prompt."""
    engine = TextEngine(output if callable(output) else lambda prompt: output)
    return ChatTersely(model=engine, preset="off", **options)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def test_model_without_a_tool_template_is_refused():
    with pytest.raises(CapabilityError) as error:
        ChatTersely(model="tersely-tiny-small").bind_tools([add])
    assert error.value.code == "no_tool_calling"


def test_calls_are_read_from_the_answer():
    model = chat(f"I add.\n</think>\n\nLet me see. {format_call('add', a=1, b=2)}\n{format_call('add', a=3, b=4)}")
    message = model.bind_tools([add]).invoke("Add.")
    assert message.content == "Let me see."
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [
        ("add", {"a": 1, "b": 2}),
        ("add", {"a": 3, "b": 4}),
    ]
    assert len({c["id"] for c in message.tool_calls}) == 2
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text", "tool_call", "tool_call"]


def test_calls_in_the_thinking_are_not_read():
    message = chat(f"What about {format_call('add', a=1, b=2)}?\n</think>\n\nIt is 3.").bind_tools([add]).invoke("Add.")
    assert message.tool_calls == [] and message.invalid_tool_calls == [] and message.content == "It is 3."
    assert message.content_blocks[0]["reasoning"] == f"What about {format_call('add', a=1, b=2)}?"


def test_call_is_text_if_no_tools_are_bound():
    message = chat(f"Hm.\n</think>\n\n{format_call('add', a=1, b=2)}").invoke("Add.")
    assert message.content == format_call("add", a=1, b=2) and message.tool_calls == []


@pytest.mark.parametrize(
    ("written", "name", "error"),
    [
        ("<tool_call>\n{'name': 1}\n</tool_call>", None, "not valid JSON"),
        ("<tool_call>\n[1]\n</tool_call>", None, "not an object with the name of a tool"),
        ('<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>', "add", "arguments are not an object"),
        ('<tool_call>\n{"name": "add", "arguments": "{"}\n</tool_call>', "add", "arguments are not valid JSON"),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1', None, "the answer ends before </tool_call>"),
    ],
)
def test_malformed_calls_are_kept_as_invalid(written: str, name: str | None, error: str):
    model = chat(f"Hm.\n</think>\n\nWell: {written}").bind_tools([add])
    message = model.invoke("Add.")
    (invalid,) = message.invalid_tool_calls
    assert message.tool_calls == [] and invalid["name"] == name and error in invalid["error"]
    assert invalid["args"] == written and message.content == "Well:"
    assert message.response_metadata["finish_reason"] == "stop"
    streamed = join_chunks(model.stream("Add."))
    assert streamed.tool_calls == [] and streamed.invalid_tool_calls[0]["args"] == written


def test_arguments_may_be_a_json_string():
    written = json.dumps({"name": "add", "arguments": json.dumps({"a": 1, "b": 2})})
    message = chat(f"</think>\n\n<tool_call>{written}</tool_call>").bind_tools([add]).invoke("Add.")
    assert message.tool_calls[0]["args"] == {"a": 1, "b": 2}


def join_chunks(chunks: Any) -> AIMessageChunk:
    full = None
    for chunk in chunks:
        full = chunk if full is None else full + chunk
    assert isinstance(full, AIMessageChunk)
    return full


def test_stream_never_shows_a_call_as_text():
    model = chat(f"I add.\n</think>\n\nLet me see. {format_call('add', a=1, b=2)}").bind_tools([add])
    chunks = list(model.stream("Add."))
    assert not any("<tool" in str(chunk.content) for chunk in chunks)
    full = join_chunks(chunks)
    assert full.content == "Let me see." and full.tool_calls[0]["args"] == {"a": 1, "b": 2}
    assert full.response_metadata == model.invoke("Add.").response_metadata


def test_prompt_contains_tools_calls_and_results():
    model = chat("Done.\n</think>\n\nIt is 3.")
    messages = [
        SystemMessage("Be kind."),
        HumanMessage("Add."),
        AIMessage("So:", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "x"}]),
        ToolMessage("3", tool_call_id="x", name="add"),
    ]
    model.bind_tools([add]).invoke(messages)
    (prompt,) = model.model.prompts
    assert prompt.startswith("<|im_start|>system\nBe kind.\n\n<tools>\n")
    assert '"name": "add"' in prompt and "Add two numbers." in prompt
    assert 'So:\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>' in prompt
    assert prompt.endswith("<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n")


def test_tool_results_are_user_messages_for_a_template_without_tools():
    model = ChatTersely(model=TextEngine(lambda prompt: "</think>\n\n3", tokenizer()), preset="off")
    asked = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "x"}])
    model.invoke([HumanMessage("Add."), asked, ToolMessage("", tool_call_id="x", name="add")])
    assert "<|im_start|>user\nResult of add: (no output)\n/normal<|im_end|>" in model.model.prompts[0]


def test_tool_choice_selects_tools_and_asks_for_a_call():
    @tool
    def sub(a: int, b: int) -> int:
        """Subtract."""
        return a - b

    model = chat(f"</think>\n\n{format_call('sub', a=3, b=2)}")
    model.bind_tools([add, sub], tool_choice="sub").invoke("Go.")
    model.bind_tools([add, sub], tool_choice="any").invoke("Go.")
    model.bind_tools([add, sub], tool_choice="none").invoke("Go.")
    named, any_, none = model.model.prompts
    assert "Add two numbers." not in named and "Go.\n\nAnswer with a call of the tool sub." in named
    assert "Add two numbers." in any_ and "Go.\n\nAnswer with a call of one of the tools." in any_
    assert "<tools>" not in none
    with pytest.raises(OptionError) as error:
        model.bind_tools([add, sub], tool_choice="ad")
    assert error.value.code == "unknown_name"


def test_structured_output_by_function_call():
    model = chat(f"</think>\n\n{format_call('Person', name='Ada', age=36)}")
    assert model.with_structured_output(Person).invoke("Who?") == Person(name="Ada", age=36)


@pytest.mark.parametrize("output", ['{"name": "Ada", "age": 36}', 'Sure:\n```json\n{"name": "Ada", "age": 36}\n```'])
@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output_by_json(output: str, method: str):
    model = chat(f'I think {{"name": "Eve", "age": 1}}.\n</think>\n\n{output}')
    wanted = model.with_structured_output(Person, method=method)
    assert wanted.invoke("Who?") == Person(name="Ada", age=36)
    assert list(wanted.stream("Who?")) == [Person(name="Ada", age=36)]
    assert ('"title": "Person"' in model.model.prompts[0]) == (method == "json_schema")
    as_dict = model.with_structured_output(Person.model_json_schema(), method=method)
    assert as_dict.invoke("Who?") == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("output", ["no idea", '{"name": "Ada"}', '{"name": "Ada", "age": "old"}', '{"name": "Ada", '])
def test_output_that_does_not_fit_is_refused(output: str):
    model = chat(f"</think>\n\n{output}")
    for schema in (Person, Person.model_json_schema()):
        with pytest.raises(OutputParserException):
            model.with_structured_output(schema, method="json_schema").invoke("Who?")
    raw = model.with_structured_output(Person, method="json_schema", include_raw=True).invoke("Who?")
    assert raw["parsed"] is None and isinstance(raw["parsing_error"], OutputParserException)
    assert raw["raw"].content == output.strip()


def test_schema_error():
    schema = {"required": ["n"], "properties": {"n": {"type": "integer"}, "t": {"type": ["string", "null"]}, "x": {}}}
    assert schema_error({"n": 1, "t": None, "x": [1]}, schema) is None
    assert schema_error([1], schema) == "expected an object, got list"
    assert schema_error({"t": "a"}, schema) == "'n' is missing"
    assert schema_error({"n": True}, schema) == "'n' is True; accepted: integer"
    assert schema_error({"n": 1, "t": 2}, schema) == "'t' is 2; accepted: string or null"


def test_unknown_methods_and_formats_are_refused():
    model = chat("</think>\n\nx")
    with pytest.raises(OptionError) as error:
        model.with_structured_output(Person, method="json")
    assert error.value.code == "unknown_name"
    with pytest.raises(OptionError) as error:
        model.invoke("Hi", response_format={"type": "xml"})
    assert error.value.code == "unknown_response_format"
    with pytest.raises(OptionError) as error:
        model.bind_tools([add], strickt=True)
    assert error.value.code == "unknown_name"
