"""Tools by the model's own chat template: told to it, and its calls read out of the answer.

Understood are templates that know `tools` and write calls as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`,
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
Tool = Mapping[str, Any]
"""A tool as OpenAI describes it: type "function", and the function's name, description and parameters."""


def supports_tools(tokenizer: Any) -> bool:
    """Whether the chat template knows tools and writes calls in the way understood here."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return "tools" in template and OPEN in template


def check_tools(engine: Engine) -> None:
    """Raise CapabilityError for a model that cannot be told tools."""
    if not supports_tools(engine.tokenizer):
        raise CapabilityError(
            f"{engine.name!r} cannot call tools: its chat template knows none, or writes no {OPEN}; use a model that "
            "was trained for it (Qwen3 and others), and this one for steps without tools"
        )


def apply_tool_choice(tools: Sequence[Tool], choice: Any) -> tuple[Sequence[Tool], str]:
    """The tools to tell, and what to ask for in words, "" for nothing; choice: LangChain's or OpenAI's `tool_choice`.

    No template can force a call, so one that is wanted is asked for. Raises OptionError for an unknown tool.
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
    """A call as the model wrote it; error: why it is none, with `text` as it was written."""

    name: str | None
    arguments: Mapping[str, Any]
    text: str
    error: str | None = None
    id: str = ""


def read_calls(answer: str) -> tuple[str, list[ToolCall]]:
    """What an answer says beside its calls, and the calls; answer: without any thinking."""
    said, opened, rest = answer.partition(OPEN)
    calls = []
    while opened:
        body, closed, rest = rest.partition(CLOSE)
        calls.append(_read(body, bool(closed)))
        between, opened, rest = rest.partition(OPEN)
        said += between
    return said.strip(), calls


def _read(body: str, closed: bool) -> ToolCall:
    number, text = f"call_{uuid4().hex}", f"{OPEN}{body}{CLOSE if closed else ''}"
    if not closed:
        return ToolCall(None, {}, text, f"the answer ends before {CLOSE}", number)
    try:
        about = json.loads(body)
    except ValueError as error:
        return ToolCall(None, {}, text, f"no JSON: {error}", number)
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str) or not name:
        return ToolCall(None, {}, text, "no object with the name of a tool", number)
    arguments = about.get("arguments", about.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            return ToolCall(name, {}, text, f"its arguments are no JSON: {error}", number)
    if not isinstance(arguments, dict):
        return ToolCall(name, {}, text, "its arguments are no object", number)
    return ToolCall(name, arguments, text, None, number)
