"""LangChain's messages as prompts, results as its messages, and structured output, asked for in the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from ....errors import OptionError, PromptError
from ...text.reasoning_parser import TextDelta
from ...text.sanitizer import SpecialTokenSanitizer
from ...text.tool_calls import CLOSE, ToolCall, parse_tool_calls
from ...trace import GenerationResult
from .. import Call

_TEXT_BLOCKS = {"text", "reasoning", "thinking", "tool_call", "tool_use", "tool_call_chunk", "invalid_tool_call"}
_NO_OUTPUT = "(no output)"
METHODS = ("function_calling", "json_schema", "json_mode")
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def as_prompt(messages: Sequence[BaseMessage], tools: bool, sanitize: SpecialTokenSanitizer) -> list[dict[str, Any]]:
    """Convert messages for a chat template, without `tools` as users' messages, sanitized; raises PromptError."""
    prompt: list[dict[str, Any]] = []
    for message in messages:
        text = _get_text(message)
        if isinstance(message, ToolMessage):
            output = sanitize(text) if text.strip() else _NO_OUTPUT
            if tools:
                prompt.append({"role": "tool", "content": output, "name": message.name and sanitize(message.name)})
            else:
                prompt.append(
                    {"role": "user", "content": f"Result of {sanitize(message.name or 'the tool')}: {output}"}
                )
        elif isinstance(message, AIMessage):
            prompt.append(_convert_assistant(message, text))
        elif isinstance(message, SystemMessage):
            prompt.append({"role": "system", "content": text})
        else:
            role = message.role if isinstance(message, ChatMessage) else "user"
            prompt.append({"role": role, "content": sanitize.break_markers(text) if role == "user" else text})
    return prompt


def _get_text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        for block in message.content:
            kind = block.get("type") if isinstance(block, dict) else "text"
            if kind not in _TEXT_BLOCKS:
                raise PromptError(
                    f"a {message.type} message has a block of type {kind!r}; accepted: text", code="unsupported_content"
                )
    return str(message.text)


def _convert_assistant(message: AIMessage, text: str) -> dict[str, Any]:
    """A turn of the model, with its tool calls and, for templates that want it, its thinking."""
    for call in message.invalid_tool_calls:
        written = str(call["args"] or "")
        text = f"{text}\n{written if written.endswith(CLOSE) else written + CLOSE}".strip()
    turn: dict[str, Any] = {"role": "assistant", "content": text}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    thinking = "".join(b.get("reasoning", "") for b in message.content_blocks if b["type"] == "reasoning")
    if thinking:
        turn["reasoning_content"] = thinking
    return turn


def append_instruction(prompt: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """Append an instruction to the last user message, or add one if there is none."""
    for index in reversed(range(len(prompt))):
        if prompt[index]["role"] == "user":
            message = {**prompt[index], "content": f"{prompt[index]['content']}\n\n{instruction}"}
            return [*prompt[:index], message, *prompt[index + 1 :]]
    return [*prompt, {"role": "user", "content": instruction}]


class MessageBuilder:
    """Builds LangChain's messages from a result: content, tool calls, usage and metadata."""

    def __init__(self, call: Call, result: GenerationResult) -> None:
        self.thinking, self.text = result.thinking, result.answer
        self.calls: list[ToolCall] = []
        if call.options.tools:
            self.text, self.calls = parse_tool_calls(self.text)
        usage = result.usage
        self.usage: dict[str, Any] = {
            "input_tokens": usage.prompt,
            "output_tokens": usage.thinking + usage.answer,
            "total_tokens": usage.prompt + usage.thinking + usage.answer,
            "output_token_details": {"reasoning": usage.thinking},
        }
        finish_reason: str = "stop" if result.finish_reason == "stopped" else result.finish_reason
        if any(call.error is None for call in self.calls):
            finish_reason = "tool_calls"
        self.metadata: dict[str, Any] = {
            "finish_reason": finish_reason,
            "model_name": call.model,
            "model_provider": "tersely",
            "tersely": {"tier": result.tier, "usage": usage.as_dict(), "decisions": [asdict(d) for d in result.trace]},
        }

    def chat_result(self) -> ChatResult:
        """The whole message."""
        valid, invalid = [c for c in self.calls if not c.error], [c for c in self.calls if c.error]
        message = AIMessage(
            content=self.text,
            additional_kwargs={"reasoning_content": self.thinking} if self.thinking else {},
            tool_calls=[tool_call(name=call.name, args=dict(call.arguments), id=call.id) for call in valid],
            invalid_tool_calls=[
                invalid_tool_call(name=call.name, args=call.text, id=call.id, error=call.error) for call in invalid
            ],
            usage_metadata=self.usage,
            response_metadata=self.metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def chunks(self) -> Iterator[ChatGenerationChunk]:
        """The whole message as a stream."""
        for delta in (TextDelta("thinking", self.thinking), TextDelta("answer", self.text)):
            if delta.text:
                yield to_chunk(delta)
        yield self.last_chunk()

    def last_chunk(self) -> ChatGenerationChunk:
        """The end of a stream: tool calls (one that is not JSON is kept as invalid), usage and metadata."""
        calls = []
        for index, call in enumerate(self.calls):
            arguments = call.text if call.error else json.dumps(call.arguments)
            calls.append(tool_call_chunk(name=call.name, args=arguments, id=call.id, index=index))
        message = AIMessageChunk(
            content="",
            tool_call_chunks=calls,
            usage_metadata=self.usage,
            response_metadata=self.metadata,
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def to_chunk(delta: TextDelta) -> ChatGenerationChunk:
    """A chunk with new text."""
    if delta.channel == "answer":
        return ChatGenerationChunk(message=AIMessageChunk(content=delta.text))
    return ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={"reasoning_content": delta.text}))


def response_format(schema: Any, method: str) -> dict[str, Any]:
    """The `response_format` of a call, as OpenAI defines it."""
    if method == "json_mode":
        return {"type": "json_object"}
    json_schema = convert_to_json_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": json_schema.get("title", "answer"), "schema": json_schema}}


def format_instruction(wanted: Any) -> str:
    """The instruction that asks for a `response_format`, "" for plain text; raises OptionError for unknown formats."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return ""
    if kind == "json_object":
        return "Answer with one JSON object and nothing else."
    if kind == "json_schema" and isinstance(wanted["json_schema"].get("schema"), Mapping):
        schema = json.dumps(wanted["json_schema"]["schema"], ensure_ascii=False)
        return f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    raise OptionError(
        f"unknown response_format {wanted!r}; accepted: type 'text', 'json_object', or 'json_schema' with "
        "json_schema={'schema': ...}",
        code="unknown_response_format",
    )


class SchemaOutputParser(BaseOutputParser):
    """Reads the JSON object in an answer; raises OutputParserException if it does not fit the schema.

    `wanted` is a pydantic class, which is instantiated, or anything that LangChain converts to a JSON schema, of which
    the required keys and the types of values are checked, but not what is nested in them.
    """

    wanted: Any

    def parse(self, text: str) -> Any:
        """Parse and check the object in an answer."""
        fenced = _FENCED.search(text)
        body = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
        try:
            value = json.loads(body)
        except ValueError as error:
            message = f"the answer has no valid JSON object ({error}): {text!r}"
            raise OutputParserException(message, llm_output=text) from None
        if isinstance(self.wanted, type) and is_basemodel_subclass(self.wanted):
            model: Any = self.wanted
            try:
                return model.model_validate(value) if hasattr(model, "model_validate") else model.parse_obj(value)
            except ValueError as error:
                raise OutputParserException(f"the answer does not fit: {error}", llm_output=text) from error
        if mismatch := schema_error(value, convert_to_json_schema(self.wanted)):
            raise OutputParserException(f"the answer does not fit: {mismatch}", llm_output=text)
        return value

    @property
    def _type(self) -> str:
        return "tersely-schema"


def schema_error(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Why a value does not fit a JSON schema, None if it does; see `SchemaOutputParser` for what is checked."""
    if not isinstance(value, dict):
        return f"expected an object, got {type(value).__name__}"
    for key in schema.get("required", ()):
        if key not in value:
            return f"{key!r} is missing"
    for key, definition in schema.get("properties", {}).items():
        kinds = definition.get("type")
        accepted = [kinds] if isinstance(kinds, str) else kinds or []
        types = tuple(t for kind in accepted for t in _TYPES.get(kind, (object,)))
        item = value.get(key)
        boolean = isinstance(item, bool) and bool not in types and object not in types
        if key in value and types and (boolean or not isinstance(item, types)):
            return f"{key!r} is {item!r}; accepted: {' or '.join(accepted)}"
    return None


def include_raw_message(model: Runnable, parser: Runnable) -> Runnable:
    """A runnable that returns the message, its parsed object and the parsing error, like LangChain's `include_raw`."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
