"""`TerselyLLM`: a reasoning model under control as LlamaIndex's LLM."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    astream_chat_response_to_completion_response,
    chat_response_to_completion_response,
    prompt_to_messages,
    stream_chat_response_to_completion_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from ...errors import PromptError, check_known
from ..options import MAX_OUTPUT_TOKENS
from ..session import Session
from ..text.reasoning_parser import TextDelta
from ..text.sanitizer import get_sanitizer
from ..trace import GenerationResult
from . import CALL_SETTINGS, BatchRunner, Call, TerselyModel, get_runner

_TOOL_ROLES = (MessageRole.TOOL, MessageRole.FUNCTION)


class TerselyLLM(CustomLLM, TerselyModel):
    """An LLM on one of tersely's engines, without tool calls; tool messages in a conversation are sanitized.

    All settings but those about loading may be given again with each call. Thinking is a `ThinkingBlock` (while
    streaming `additional_kwargs["thinking_delta"]`); `additional_kwargs["tersely"]` has tier, usage and decisions.
    """

    def __init__(self, **settings: Any) -> None:
        self._check_arguments(settings, CustomLLM)
        super().__init__(**settings)
        self._check_values()

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex serializes the class under."""
        return "tersely"

    @property
    def metadata(self) -> LLMMetadata:
        """The model's limits; loads a model that was given by name."""
        engine = self.session().engine
        return LLMMetadata(
            context_window=engine.context_length or 1 << 20,
            num_output=self.max_tokens or MAX_OUTPUT_TOKENS,
            is_chat_model=True,
            model_name=engine.name,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; raises OptionError for unknown settings, PromptError for content that is not text."""
        *_, last = self._stream(messages, kwargs)
        return last

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        """Stream an answer, the thinking first; closing the stream stops the generation."""
        yield from self._stream(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        *_, last = [response async for response in self._astream(messages, kwargs)]
        return last

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        return self._astream(messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt as a user message; `formatted` has no effect, since the chat template formats it."""
        *_, last = self._stream(prompt_to_messages(prompt), kwargs)
        return chat_response_to_completion_response(last)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Iterator[CompletionResponse]:
        """See `complete` and `stream_chat`."""
        yield from stream_chat_response_to_completion_response(self._stream(prompt_to_messages(prompt), kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return chat_response_to_completion_response(await self.achat(prompt_to_messages(prompt), **kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        stream: AsyncIterator[CompletionResponse] = astream_chat_response_to_completion_response(
            self._astream(prompt_to_messages(prompt), kwargs)
        )
        return stream

    def _prepare(self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]) -> tuple[BatchRunner, Call]:
        check_known("setting of a call", settings, CALL_SETTINGS)
        after_tool = bool(messages) and messages[-1].role in _TOOL_ROLES
        options = self._build_options(settings, after_tool)
        session = self.session()
        return get_runner(session.engine), Call(session, _as_prompt(messages, session), options)

    def _stream(
        self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]
    ) -> Generator[ChatResponse, None, None]:
        runner, call = self._prepare(messages, settings)
        builder = _ResponseBuilder()
        with contextlib.closing(runner.stream(call)) as stream:
            for event in stream:
                yield builder.add(event)

    async def _astream(
        self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]
    ) -> AsyncGenerator[ChatResponse, None]:
        runner, call = self._prepare(messages, settings)
        builder = _ResponseBuilder()
        async with contextlib.aclosing(runner.astream(call)) as stream:
            async for event in stream:
                yield builder.add(event)


class _ResponseBuilder:
    """Accumulates one answer into LlamaIndex's responses."""

    def __init__(self) -> None:
        self.thinking = self.answer = ""

    def add(self, event: TextDelta | GenerationResult) -> ChatResponse:
        """The response after a delta, or at the end."""
        if isinstance(event, GenerationResult):
            usage, decisions = asdict(event.usage), [asdict(decision) for decision in event.trace]
            info = {"tier": event.tier, "finish_reason": event.finish_reason, "usage": usage, "decisions": decisions}
            self.thinking, self.answer = event.thinking, event.answer
            return self._response("", {"tersely": info}, event)
        if event.channel == "answer":
            self.answer += event.text
            return self._response(event.text, {})
        self.thinking += event.text
        return self._response("", {"thinking_delta": event.text})

    def _response(self, delta: str, info: dict[str, Any], raw: Any = None) -> ChatResponse:
        blocks = [*([ThinkingBlock(content=self.thinking)] if self.thinking else []), TextBlock(text=self.answer)]
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
        return ChatResponse(message=message, delta=delta, additional_kwargs=info, raw=raw)


def _as_prompt(messages: Sequence[ChatMessage], session: Session) -> list[dict[str, Any]]:
    """Convert messages for a chat template, without the thinking of earlier turns."""
    sanitize = get_sanitizer(session.engine.tokenizer, session.markers)
    prompt = []
    for message in messages:
        for block in message.blocks:
            if not isinstance(block, (TextBlock, ThinkingBlock)):
                raise PromptError(
                    f"a message has a block of type {block.block_type!r}; accepted: text", code="unsupported_content"
                )
        role, text = message.role, message.content or ""
        if role in _TOOL_ROLES:
            role, text = MessageRole.USER, f"Result of the tool: {sanitize(text)}"
        elif role == MessageRole.USER:
            text = sanitize.break_markers(text)
        prompt.append({"role": str(role.value), "content": text})
    return prompt
