"""The body of POST /v1/responses. Nothing is stored."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from . import schemas


class InputMessage(schemas.StrictModel):
    """A message of the input, or one of an earlier reply sent back."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: schemas.Content
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class ReasoningText(schemas.StrictModel):
    """Text of earlier thinking."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(schemas.StrictModel):
    """Thinking of an earlier reply sent back; it belongs to the message that follows."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    content: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    encrypted_content: None = None
    status: str | None = None


class InputCall(schemas.StrictModel):
    """A tool call of an earlier reply sent back."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The call as chat templates expect it, with its arguments as they are if they are not JSON."""
        try:
            arguments = json.loads(self.arguments)
        except (ValueError, RecursionError):
            arguments = self.arguments
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class InputCallOutput(schemas.StrictModel):
    """What a tool returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: schemas.Content
    id: str | None = None
    status: str | None = None


class FunctionTool(schemas.StrictModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: schemas.JsonObject | None = None
    strict: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        return {"type": "function", "function": self.model_dump(exclude={"type", "strict"}, exclude_none=True)}


def _item_kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"item {kind}"


Item = Annotated[
    Annotated[InputMessage, Tag("item message")]
    | Annotated[InputReasoning, Tag("item reasoning")]
    | Annotated[InputCall, Tag("item function_call")]
    | Annotated[InputCallOutput, Tag("item function_call_output")],
    Discriminator(
        _item_kind,
        custom_error_type="unsupported_item",
        custom_error_message="Input should be an item of type 'message', 'reasoning', 'function_call' or "
        "'function_call_output'",
    ),
]


class Reasoning(schemas.StrictModel):
    """How much to think; there are no summaries, the thinking itself is in the reply."""

    effort: schemas.Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(schemas.StrictModel):
    """The form of the answer."""

    format: schemas.TextFormat | None = None


class ResponsesRequest(schemas.RequestBody):
    """The body of POST /v1/responses."""

    prompt_field = "input"
    limit_fields = ("max_output_tokens",)
    effort_fields = ("tersely.effort", "reasoning.effort")

    input: Annotated[
        Annotated[str, Tag("a text")] | Annotated[list[Item], Field(fail_fast=True, min_length=1), Tag("a list")],
        Discriminator(schemas.by_shape),
        Field(examples=[schemas.EXAMPLE]),
    ]
    instructions: str | None = None
    stream_options: schemas.ObfuscationOptions | None = None
    max_output_tokens: schemas.Tokens | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None

    background: schemas.Never | None = None
    conversation: None = None
    previous_response_id: None = None
    prompt: None = None
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=1)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    truncation: Literal["disabled"] | None = None
    max_tool_calls: int | None = None

    def to_messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        thinking = ""
        for item in self.input:
            if isinstance(item, InputReasoning):
                thinking = "".join(part.text for part in item.content or item.summary or ())
                continue
            message = _to_message(item)
            if isinstance(item, InputCall) and messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
                continue
            if thinking and message["role"] == "assistant":
                message["reasoning_content"] = thinking
            messages.append(message)
            thinking = ""
        return messages

    def offered_tools(self) -> tuple[dict[str, Any], ...]:
        return () if self.tool_choice == "none" else tuple(tool.to_dict() for tool in self.tools or ())

    def echo(self) -> dict[str, Any]:
        """The fields of the request that a reply repeats."""
        effort = self.reasoning.effort if self.reasoning else None
        fields = self.model_dump(include={"instructions", "max_output_tokens", "temperature", "top_p", "user"})
        tools = [tool.model_dump() for tool in self.tools or ()]
        choice = {"tools": tools, "tool_choice": self.tool_choice or "auto", "parallel_tool_calls": bool(tools)}
        return {**fields, **choice, "metadata": self.metadata or {}, "reasoning": {"effort": effort, "summary": None}}


def _to_message(item: InputMessage | InputCall | InputCallOutput) -> dict[str, Any]:
    """An item as chat templates expect it."""
    if isinstance(item, InputCall):
        return {"role": "assistant", "content": "", "tool_calls": [item.to_dict()]}
    if isinstance(item, InputCallOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": schemas.get_text(item.output)}
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": schemas.get_text(item.content)}
