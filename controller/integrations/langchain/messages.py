"""LangChain's messages as prompts, and results as LangChain's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from ....errors import PromptError
from ...text.reasoning_parser import TextDelta
from ...text.sanitizer import SpecialTokenSanitizer
from ...text.tool_calls import CLOSE, ToolCall, parse_tool_calls
from ...trace import GenerationResult
from ..runner import Call

_TEXT_BLOCKS = {"text", "reasoning", "thinking", "tool_call", "tool_use", "tool_call_chunk", "invalid_tool_call"}
_NO_OUTPUT = "(no output)"


def as_prompt(messages: Sequence[BaseMessage], tools: bool, sanitize: SpecialTokenSanitizer) -> list[dict[str, Any]]:
    """Convert messages for a chat template; tool output is sanitized, and becomes user messages without `tools`.

    Raises PromptError for content that is not text.
    """
    prompt: list[dict[str, Any]] = []
    for message in messages:
        text = _get_text(message)
        if isinstance(message, ToolMessage):
            output = sanitize(text) if text.strip() else _NO_OUTPUT
            if tools:
                prompt.append({"role": "tool", "content": output, "name": message.name})
            else:
                prompt.append({"role": "user", "content": f"Result of {message.name or 'the tool'}: {output}"})
        elif isinstance(message, AIMessage):
            prompt.append(_convert_assistant(message, text))
        elif isinstance(message, SystemMessage):
            prompt.append({"role": "system", "content": text})
        else:
            role = message.role if isinstance(message, ChatMessage) else "user"
            prompt.append({"role": role, "content": text})
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
            "tersely": {
                "tier": result.tier,
                "usage": usage.as_dict(),
                "decisions": [asdict(decision) for decision in result.trace],
            },
        }

    def chat_result(self) -> ChatResult:
        """The whole message."""
        message = AIMessage(
            content=self.text,
            additional_kwargs={"reasoning_content": self.thinking} if self.thinking else {},
            tool_calls=[
                tool_call(name=call.name, args=dict(call.arguments), id=call.id)
                for call in self.calls
                if not call.error
            ],
            invalid_tool_calls=[
                invalid_tool_call(name=call.name, args=call.text, id=call.id, error=call.error)
                for call in self.calls
                if call.error
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
        """The end of a stream: tool calls, usage and metadata.

        The text of an invalid call is not JSON, so LangChain keeps it as invalid.
        """
        calls = [
            tool_call_chunk(
                name=call.name, args=call.text if call.error else json.dumps(call.arguments), id=call.id, index=index
            )
            for index, call in enumerate(self.calls)
        ]
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
