"""LangChain's messages as prompts, and generations as LangChain's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from ....errors import PromptError
from ...text.reasoning_parser import truncate_at_stop
from ...text.tool_calls import CLOSE, ToolCall, read_calls
from ...trace import GenerationResult
from .safety import SpecialTokenSanitizer

_TEXT_BLOCKS = {"text", "reasoning", "thinking", "tool_call", "tool_use", "tool_call_chunk", "invalid_tool_call"}
_NOTHING = "(no output)"


def as_prompt(messages: Sequence[BaseMessage], tools: bool, neutralise: SpecialTokenSanitizer) -> list[dict[str, Any]]:
    """The messages as chat templates take them.

    tools: the template knows the messages of tools; another gets their results as messages of the user. What tools
    wrote is neutralised. Raises PromptError for content that is no text.
    """
    prompt: list[dict[str, Any]] = []
    for message in messages:
        text = _text(message)
        if isinstance(message, ToolMessage):
            said = neutralise(text) if text.strip() else _NOTHING
            if tools:
                prompt.append({"role": "tool", "content": said, "name": message.name})
            else:
                prompt.append({"role": "user", "content": f"Result of {message.name or 'the tool'}: {said}"})
        elif isinstance(message, AIMessage):
            prompt.append(_of_assistant(message, text))
        elif isinstance(message, SystemMessage):
            prompt.append({"role": "system", "content": text})
        else:
            role = message.role if isinstance(message, ChatMessage) else "user"
            prompt.append({"role": role, "content": text})
    return prompt


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        for block in message.content:
            kind = block.get("type") if isinstance(block, dict) else "text"
            if kind not in _TEXT_BLOCKS:
                raise PromptError(f"a {message.type} message holds a block of type {kind!r}; accepted: text")
    return str(message.text)


def _of_assistant(message: AIMessage, text: str) -> dict[str, Any]:
    """A turn of the model itself, with its calls and, for templates that want it, its thinking."""
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


def append_instruction(prompt: list[dict[str, Any]], wish: str) -> list[dict[str, Any]]:
    """The prompt with a wish at the end of the user's last message, or in one of its own where there is none."""
    for place in range(len(prompt) - 1, -1, -1):
        if prompt[place]["role"] == "user":
            asked = {**prompt[place], "content": f"{prompt[place]['content']}\n\n{wish}"}
            return [*prompt[:place], asked, *prompt[place + 1 :]]
    return [*prompt, {"role": "user", "content": wish}]


class MessageBuilder:
    """A generation as the parts of a LangChain message: content, calls, usage and metadata."""

    def __init__(self, generation: GenerationResult, model: str, stops: Sequence[str], tools: bool) -> None:
        self.thinking = generation.thinking
        text, stopped = truncate_at_stop(generation.answer, stops)
        calls: list[ToolCall] = []
        if tools:
            text, calls = read_calls(text)
        self.text, self.calls = text, calls
        usage = generation.usage
        self.usage: dict[str, Any] = {
            "input_tokens": usage.prompt,
            "output_tokens": usage.thinking + usage.answer,
            "total_tokens": usage.prompt + usage.thinking + usage.answer,
            "output_token_details": {"reasoning": usage.thinking},
        }
        valid = any(call.error is None for call in calls)
        ended = "stop" if stopped or generation.finish_reason == "stopped" else generation.finish_reason
        self.metadata: dict[str, Any] = {
            "finish_reason": "tool_calls" if valid else ended,
            "model_name": model,
            "model_provider": "tersely",
            "tersely": {
                "tier": generation.tier,
                "usage": usage.as_dict(),
                "decisions": [asdict(decision) for decision in generation.trace],
            },
        }

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls that can be carried out."""
        return [
            {"type": "tool_call", "name": c.name, "args": dict(c.arguments), "id": c.id}
            for c in self.calls
            if not c.error
        ]

    @property
    def invalid_tool_calls(self) -> list[dict[str, Any]]:
        """The others, as they were written, each with what is wrong with it."""
        return [
            {"type": "invalid_tool_call", "name": c.name, "args": c.text, "id": c.id, "error": c.error}
            for c in self.calls
            if c.error
        ]

    def result(self) -> ChatResult:
        """All of it at once."""
        message = AIMessage(
            content=self.text,
            additional_kwargs={"reasoning_content": self.thinking} if self.thinking else {},
            tool_calls=self.tool_calls,
            invalid_tool_calls=self.invalid_tool_calls,
            usage_metadata=self.usage,
            response_metadata=self.metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def chunks(self) -> Iterator[ChatGenerationChunk]:
        """All of it as a stream."""
        for part, text in (("thinking", self.thinking), ("answer", self.text)):
            if text:
                yield to_chunk(part, text)
        yield self.last()

    def last(self) -> ChatGenerationChunk:
        """What a stream ends with: calls, usage and metadata.

        The text of an invalid call is no JSON, and so stays invalid.
        """
        calls = [
            {
                "type": "tool_call_chunk",
                "name": c.name,
                "args": c.text if c.error else json.dumps(c.arguments),
                "id": c.id,
                "index": place,
            }
            for place, c in enumerate(self.calls)
        ]
        message = AIMessageChunk(
            content="",
            tool_call_chunks=calls,
            usage_metadata=self.usage,
            response_metadata=self.metadata,
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def to_chunk(part: str, text: str) -> ChatGenerationChunk:
    """A piece of text as it is made; part: "thinking" or "answer"."""
    if part == "answer":
        return ChatGenerationChunk(message=AIMessageChunk(content=text))
    return ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={"reasoning_content": text}))
