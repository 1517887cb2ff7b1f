"""Tool calling through the model's own chat template.

Supported are templates that take `tools` and write calls as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`,
like those of Qwen and Hermes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from ...errors import CapabilityError, unknown
from ..types import Engine

OPEN, CLOSE = "<tool_call>", "</tool_call>"
REGIONS = (
    (OPEN, CLOSE),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<function_calls>", "</function_calls>"),
    ("<function=", "</function>"),
    ("[TOOL_CALLS]", ""),
    ("<|tool_call|>", ""),
    ("<|python_tag|>", ""),
)
"""How calls begin and end in the families that vLLM has parsers for; "" where they go on to the end of the turn."""
CALL_STARTS, CALL_ENDS = tuple(start for start, _ in REGIONS), tuple(end for _, end in REGIONS if end)
Tool = Mapping[str, Any]
"""A tool in OpenAI's format: type "function", and the function's name, description and parameters."""


def supports_tools(tokenizer: Any) -> bool:
    """Whether the chat template takes tools and writes calls in the supported format."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return "tools" in template and OPEN in template


def check_tools(engine: Engine) -> None:
    """Raise CapabilityError for a model that cannot call tools."""
    if not supports_tools(engine.tokenizer):
        raise CapabilityError(
            f"{engine.name!r} cannot call tools: its chat template does not accept tools or does not write {OPEN}; "
            "use a model trained for tool calling, such as Qwen3, or leave out the tools",
            code="no_tool_calling",
        )


def apply_tool_choice(tools: Sequence[Tool], choice: Any) -> tuple[Sequence[Tool], str]:
    """Apply LangChain's or OpenAI's `tool_choice`: the tools to offer, and an instruction for the prompt ("" for none).

    No template can force a call, so the instruction asks for one. Raises OptionError for an unknown tool.
    """
    if isinstance(choice, Mapping):
        choice = choice.get("function", {}).get("name")
    if choice in (None, False, "auto") or not tools:
        return tools, ""
    if choice == "none":
        return (), ""
    names = [str(tool["function"]["name"]) for tool in tools]
    if choice in (True, "any", "required"):
        return tools, "Answer with a call of one of the tools."
    if choice not in names:
        raise unknown("tool_choice", str(choice), ("auto", "none", "any", "required", *names))
    return [tools[names.index(choice)]], f"Answer with a call of the tool {choice}."


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it."""

    name: str | None
    arguments: Mapping[str, Any]
    text: str  # the call with its tags, exactly as written
    error: str | None = None  # why the call is invalid; None for a valid one
    id: str = ""


def parse_tool_calls(answer: str) -> tuple[str, list[ToolCall]]:
    """Split an answer, given without its thinking, into its text and its tool calls."""
    text, opened, rest = answer.partition(OPEN)
    calls = []
    while opened:
        body, closed, rest = rest.partition(CLOSE)
        calls.append(_parse_call(body, bool(closed)))
        between, opened, rest = rest.partition(OPEN)
        text += between
    return text.strip(), calls


def _parse_call(body: str, closed: bool) -> ToolCall:
    call_id, text = f"call_{uuid4().hex}", f"{OPEN}{body}{CLOSE if closed else ''}"
    if not closed:
        return ToolCall(None, {}, text, f"the answer ends before {CLOSE}", call_id)
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        return ToolCall(None, {}, text, f"not valid JSON: {error}", call_id)
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        return ToolCall(None, {}, text, "not an object with the name of a tool", call_id)
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(name, {}, text, f"the arguments are not valid JSON: {error}", call_id)
    if not isinstance(arguments, dict):
        return ToolCall(name, {}, text, "the arguments are not an object", call_id)
    return ToolCall(name, arguments, text, None, call_id)
