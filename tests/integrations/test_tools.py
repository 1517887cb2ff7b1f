"""Tool calls and structured answers of `ChatTersely`, on an engine that says what a script says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from transformers import AutoTokenizer

from tersely.controller.integrations.langchain.chat_model import ChatTersely
from tersely.controller.integrations.langchain.structured_output import schema_error
from tersely.controller.types import KEEP, Completion, Request, SamplingParams, TokenSink
from tersely.errors import CapabilityError, OptionError
from tersely.models import get_model_path

TEMPLATE = """
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- endif -%}
{{- '<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools>\nA call is written as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' -}}
{%- elif message.role != 'system' or not tools -%}
{{- '<|im_start|>' + message.role + '\n' + message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%}
"""


@cache
def tokenizer() -> Any:
    """That of the embedded models."""
    return AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small"))


@cache
def tool_tokenizer() -> Any:
    """The embedded tokenizer with a chat template that knows tools, in the manner of Qwen's."""
    made = copy.deepcopy(tokenizer())
    made.chat_template = TEMPLATE
    return made


class SaidEngine:
    """Says what `say(prompt)` says, prompt and output as text; shows each token to whoever watches."""

    name = "said"
    capabilities = frozenset({"crop", "ragged"})
    context_length: int | None = None

    def __init__(self, say: Callable[[str], str], tokenizer: Any = None) -> None:
        self.say, self.tokenizer = say, tokenizer or tool_tokenizer()
        self.prompts: list[str] = []
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.made = 0

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        self.batches.append(len(requests))
        return [self._one(row, request, sink) for row, request in enumerate(requests)]

    def _one(self, row: int, request: Request, sink: TokenSink | None) -> Completion:
        prompt = self.tokenizer.decode(request.prompt_ids)
        self.prompts.append(prompt)
        self.requests.append(request)
        out: list[int] = []
        for token in self.tokenizer.encode(self.say(prompt))[: request.max_new_tokens]:
            directive = request.watcher.observe(token) if request.watcher else KEEP
            out.append(token)
            self.made += 1
            if sink is not None:
                sink(row, (token,), False)
            if directive.stop:
                return Completion(tuple(out), (False,) * len(out), "stopped")
        return Completion(tuple(out), (False,) * len(out), "stop")

    def fingerprint(self) -> str | None:
        return None

    def close(self) -> None:
        pass


def call(name: str, /, **arguments: Any) -> str:
    """A call as the template's model writes it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def chat(say: str | Callable[[str], str], **options: Any) -> ChatTersely:
    """A chat model that says this, or what a function of the prompt says."""
    engine = SaidEngine(say if callable(say) else lambda prompt: say)
    return ChatTersely(model=engine, preset="off", **options)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def test_the_embedded_models_say_that_they_cannot_call_tools():
    with pytest.raises(CapabilityError, match="'tersely-tiny-small' cannot call tools: its chat template knows none"):
        ChatTersely(model="tersely-tiny-small").bind_tools([add])


def test_calls_are_read_out_of_the_answer():
    model = chat(f"I add.\n</think>\n\nLet me see. {call('add', a=1, b=2)}\n{call('add', a=3, b=4)}")
    message = model.bind_tools([add]).invoke("Add.")
    assert message.content == "Let me see."
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [
        ("add", {"a": 1, "b": 2}),
        ("add", {"a": 3, "b": 4}),
    ]
    assert len({c["id"] for c in message.tool_calls}) == 2
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text", "tool_call", "tool_call"]


def test_calls_in_the_thinking_are_thinking():
    message = chat(f"What about {call('add', a=1, b=2)}?\n</think>\n\nIt is 3.").bind_tools([add]).invoke("Add.")
    assert message.tool_calls == [] and message.invalid_tool_calls == [] and message.content == "It is 3."
    assert message.content_blocks[0]["reasoning"] == f"What about {call('add', a=1, b=2)}?"


def test_without_tools_bound_a_call_is_text():
    message = chat(f"Hm.\n</think>\n\n{call('add', a=1, b=2)}").invoke("Add.")
    assert message.content == call("add", a=1, b=2) and message.tool_calls == []


@pytest.mark.parametrize(
    ("written", "name", "error"),
    [
        ("<tool_call>\n{'name': 1}\n</tool_call>", None, "no JSON"),
        ("<tool_call>\n[1]\n</tool_call>", None, "no object with the name of a tool"),
        ('<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>', "add", "its arguments are no object"),
        ('<tool_call>\n{"name": "add", "arguments": "{"}\n</tool_call>', "add", "its arguments are no JSON"),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1', None, "the answer ends before </tool_call>"),
    ],
)
def test_what_is_no_call_is_kept_as_invalid(written: str, name: str | None, error: str):
    model = chat(f"Hm.\n</think>\n\nWell: {written}").bind_tools([add])
    message = model.invoke("Add.")
    (invalid,) = message.invalid_tool_calls
    assert message.tool_calls == [] and invalid["name"] == name and error in invalid["error"]
    assert invalid["args"] == written and message.content == "Well:"
    assert message.response_metadata["finish_reason"] == "stop"
    streamed = _joined(model.stream("Add."))
    assert streamed.tool_calls == [] and streamed.invalid_tool_calls[0]["args"] == written


def test_arguments_may_be_json_in_a_string():
    written = json.dumps({"name": "add", "arguments": json.dumps({"a": 1, "b": 2})})
    message = chat(f"</think>\n\n<tool_call>{written}</tool_call>").bind_tools([add]).invoke("Add.")
    assert message.tool_calls[0]["args"] == {"a": 1, "b": 2}


def _joined(chunks: Any) -> AIMessageChunk:
    full = None
    for chunk in chunks:
        full = chunk if full is None else full + chunk
    assert isinstance(full, AIMessageChunk)
    return full


def test_a_stream_never_shows_a_call_as_text():
    model = chat(f"I add.\n</think>\n\nLet me see. {call('add', a=1, b=2)}").bind_tools([add])
    chunks = list(model.stream("Add."))
    assert not any("<tool" in str(chunk.content) for chunk in chunks)
    full = _joined(chunks)
    assert full.content == "Let me see." and full.tool_calls[0]["args"] == {"a": 1, "b": 2}
    assert full.response_metadata == model.invoke("Add.").response_metadata


def test_the_prompt_tells_tools_calls_and_results():
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


def test_a_template_without_tools_gets_results_as_messages_of_the_user():
    model = ChatTersely(model=SaidEngine(lambda prompt: "</think>\n\n3", tokenizer()), preset="off")
    asked = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "x"}])
    model.invoke([HumanMessage("Add."), asked, ToolMessage("", tool_call_id="x", name="add")])
    assert "<|im_start|>user\nResult of add: (no output)\n/normal<|im_end|>" in model.model.prompts[0]


def test_a_wanted_call_is_asked_for_and_a_named_tool_told_alone():
    @tool
    def sub(a: int, b: int) -> int:
        """Subtract."""
        return a - b

    model = chat(f"</think>\n\n{call('sub', a=3, b=2)}")
    model.bind_tools([add, sub], tool_choice="sub").invoke("Go.")
    model.bind_tools([add, sub], tool_choice="any").invoke("Go.")
    model.bind_tools([add, sub], tool_choice="none").invoke("Go.")
    named, any_, none = model.model.prompts
    assert "Add two numbers." not in named and "Go.\n\nAnswer with a call of the tool sub." in named
    assert "Add two numbers." in any_ and "Go.\n\nAnswer with a call of one of the tools." in any_
    assert "<tools>" not in none
    with pytest.raises(OptionError, match="unknown tool_choice 'ad'; did you mean 'add'"):
        model.bind_tools([add, sub], tool_choice="ad")


def test_structured_by_a_tool_where_the_template_knows_tools():
    model = chat(f"</think>\n\n{call('Person', name='Ada', age=36)}")
    assert model.with_structured_output(Person).invoke("Who?") == Person(name="Ada", age=36)


@pytest.mark.parametrize("said", ['{"name": "Ada", "age": 36}', 'Sure:\n```json\n{"name": "Ada", "age": 36}\n```'])
@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_by_json(said: str, method: str):
    model = chat(f'I think {{"name": "Eve", "age": 1}}.\n</think>\n\n{said}')
    wanted = model.with_structured_output(Person, method=method)
    assert wanted.invoke("Who?") == Person(name="Ada", age=36)
    assert list(wanted.stream("Who?")) == [Person(name="Ada", age=36)]
    assert ('"title": "Person"' in model.model.prompts[0]) == (method == "json_schema")
    as_dict = model.with_structured_output(Person.model_json_schema(), method=method)
    assert as_dict.invoke("Who?") == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("said", ["no idea", '{"name": "Ada"}', '{"name": "Ada", "age": "old"}', '{"name": "Ada", '])
def test_what_does_not_fit_is_an_error(said: str):
    model = chat(f"</think>\n\n{said}")
    for schema in (Person, Person.model_json_schema()):
        with pytest.raises(OutputParserException, match="answer"):
            model.with_structured_output(schema, method="json_schema").invoke("Who?")
    raw = model.with_structured_output(Person, method="json_schema", include_raw=True).invoke("Who?")
    assert raw["parsed"] is None and isinstance(raw["parsing_error"], OutputParserException)
    assert raw["raw"].content == said.strip()


def test_what_fits_a_schema():
    schema = {"required": ["n"], "properties": {"n": {"type": "integer"}, "t": {"type": ["string", "null"]}, "x": {}}}
    assert schema_error({"n": 1, "t": None, "x": [1]}, schema) is None
    assert schema_error([1], schema) == "it is no object but list"
    assert schema_error({"t": "a"}, schema) == "'n' is missing"
    assert schema_error({"n": True}, schema) == "'n' is True; accepted: integer"
    assert schema_error({"n": 1, "t": 2}, schema) == "'t' is 2; accepted: string or null"


def test_unknown_methods_and_formats_are_refused():
    model = chat("</think>\n\nx")
    with pytest.raises(OptionError, match="unknown method 'json'; did you mean 'json_mode'"):
        model.with_structured_output(Person, method="json")
    with pytest.raises(OptionError, match=r"response_format .*'xml'.* not understood"):
        model.invoke("Hi", response_format={"type": "xml"})
    with pytest.raises(OptionError, match="unknown setting of a call 'strickt'"):
        model.bind_tools([add], strickt=True)
