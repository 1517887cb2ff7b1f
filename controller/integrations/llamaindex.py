"""`TerselyLLM`: a reasoning model under control as LlamaIndex's LLM."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

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
from pydantic import Field, PrivateAttr

from ...errors import PromptError
from ..budgets import canonical_effort
from ..options import DEFAULT_MAX_NEW_TOKENS
from ..policies import make_policies
from ..session import Session
from ..trace import GenerationResult
from .langchain.call_options import CALL_OPTIONS, build_options, check_arguments, check_settings, open_session
from .langchain.runner import BackgroundGeneration, Told, aiter_deltas, iter_deltas
from .langchain.safety import get_sanitizer

_OF_TOOLS = (MessageRole.TOOL, MessageRole.FUNCTION)


class TerselyLLM(CustomLLM):
    """An LLM on one of tersely's engines.

    model: a name or folder, an `Engine` or a `Session`; one given by name is loaded at its first use. The other options
    mean what they mean in `tersely.generate`, and may be given again with each call. Thinking is a `ThinkingBlock` of
    the message (`additional_kwargs["thinking_delta"]` while streaming), tier, usage and decisions are in
    `additional_kwargs["tersely"]`. Tools are not called; what messages of tools hold is neutralised.
    """

    model: Any = Field(default="tersely-tiny-small")
    effort: str = "normal"
    preset: str | None = "balanced"
    policies: Sequence[Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    probes: str | None = None
    answer_reserve: int | None = None
    strategy: Any = "tiers"
    markers: Any = None
    think_prompt: bool = False
    verifier: Any = None
    helper: Any = None

    _known: Session | None = PrivateAttr(default=None)

    def __init__(self, **given: Any) -> None:
        check_arguments(given, type(self), CustomLLM)
        super().__init__(**given)
        canonical_effort(self.effort)
        make_policies(self.preset, self.policies)

    @classmethod
    def class_name(cls) -> str:
        """By what LlamaIndex knows the class."""
        return "tersely"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans with; loads a model that was given by name."""
        engine = self._session().engine
        return LLMMetadata(
            context_window=engine.context_length or 1 << 20,
            num_output=self.max_tokens or DEFAULT_MAX_NEW_TOKENS,
            is_chat_model=True,
            model_name=engine.name,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; raises OptionError for an unknown setting, PromptError for what is no text."""
        *_, last = self._read(messages, kwargs)
        return last

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        """Answer a conversation piece by piece, the thinking first; leaving it early ends the row."""
        yield from self._read(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See `chat`."""
        *_, last = [piece async for piece in self._read_async(messages, kwargs)]
        return last

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        """See `stream_chat`."""
        return self._read_async(messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text as a message of a user; formatted makes no difference, the chat template does that."""
        *_, last = self._read(_as_messages(prompt), kwargs)
        return _completion(last)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Iterator[CompletionResponse]:
        """See `complete` and `stream_chat`."""
        yield from map(_completion, self._read(_as_messages(prompt), kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """See `complete`."""
        return _completion(await self.achat(_as_messages(prompt), **kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """See `stream_complete`."""

        async def pieces() -> AsyncGenerator[CompletionResponse, None]:
            async for piece in self._read_async(_as_messages(prompt), kwargs):
                yield _completion(piece)

        return pieces()

    def _session(self) -> Session:
        if isinstance(self.model, Session):
            return self.model
        if self._known is None:
            self._known = open_session(self.model, self)
        return self._known

    def _start(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Callable[..., BackgroundGeneration]:
        check_settings(given, CALL_OPTIONS)
        own = {name: getattr(self, name) for name in CALL_OPTIONS if name in type(self).model_fields}
        after_tool = bool(messages) and messages[-1].role in _OF_TOOLS
        options = build_options({**own, **given}, after_tool)
        session = self._session()
        prompt = _as_prompt(messages, session)

        def start(tell: Callable[[Told], None]) -> BackgroundGeneration:
            return BackgroundGeneration(session, prompt, options, (), "", tell)

        return start

    def _read(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Generator[ChatResponse, None, None]:
        said = _Delta()
        with contextlib.closing(iter_deltas(self._start(messages, given))) as told:
            for piece in told:
                yield said.after(piece)

    async def _read_async(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> AsyncGenerator[ChatResponse, None]:
        said = _Delta()
        async with contextlib.aclosing(aiter_deltas(self._start(messages, given))) as told:
            async for piece in told:
                yield said.after(piece)


class _Delta:
    """What has been read out of one answer so far."""

    def __init__(self) -> None:
        self.thinking = self.answer = ""

    def after(self, piece: tuple[str, str] | GenerationResult) -> ChatResponse:
        """The response as it stands after a piece, or at the end."""
        if isinstance(piece, GenerationResult):
            about = {
                "tier": piece.tier,
                "finish_reason": piece.finish_reason,
                "usage": asdict(piece.usage),
                "decisions": [asdict(decision) for decision in piece.trace],
            }
            return self._response(piece.thinking, piece.answer, "", {"tersely": about}, piece)
        part, text = piece
        if part == "answer":
            self.answer += text
            return self._response(self.thinking, self.answer, text, {})
        self.thinking += text
        return self._response(self.thinking, self.answer, "", {"thinking_delta": text})

    def _response(self, thinking: str, answer: str, delta: str, more: dict[str, Any], raw: Any = None) -> ChatResponse:
        blocks = [*([ThinkingBlock(content=thinking)] if thinking else []), TextBlock(text=answer)]
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
        return ChatResponse(message=message, delta=delta, additional_kwargs=more, raw=raw)


def _as_messages(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=prompt)]


def _as_prompt(messages: Sequence[ChatMessage], session: Session) -> list[dict[str, Any]]:
    """Messages as chat templates take them; thinking of earlier turns is left out."""
    neutralise = get_sanitizer(session.engine.tokenizer, session.markers)
    prompt = []
    for message in messages:
        for block in message.blocks:
            if not isinstance(block, (TextBlock, ThinkingBlock)):
                raise PromptError(f"a message holds a block of type {block.block_type!r}; accepted: text")
        role, text = message.role, message.content or ""
        if role in _OF_TOOLS:
            role, text = MessageRole.USER, f"Result of the tool: {neutralise(text)}"
        prompt.append({"role": str(role.value), "content": text})
    return prompt


def _completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
        raw=response.raw,
    )
