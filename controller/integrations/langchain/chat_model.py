"""`ChatTersely`: a reasoning model under control as LangChain's chat model; and how any chat model gets an effort."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.load import dumps
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, run_in_executor
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import PrivateAttr

from ....errors import OptionError, TerselyError, check_known
from ...budgets import ALIASES, EFFORTS, OPENAI_EFFORTS, canonical_effort
from ...options import MAX_OUTPUT_TOKENS
from ...text.reasoning_parser import TextDelta
from ...text.sanitizer import get_sanitizer
from ...text.tool_calls import OPEN, apply_tool_choice, check_tools, supports_tools
from ...trace import GenerationResult
from .. import CALL_SETTINGS, Call, TerselyModel, get_runner
from . import messages as conversion

SETTINGS = (*CALL_SETTINGS, "model", "tools", "tool_choice", "response_format", "stream")
"""What may be given with each call."""

_NETWORK_OPTIONS = ("api_key", "timeout", "max_retries")  # standard for chat models; nothing here asks a network

_OBJECTS = ("policies", "modifiers", "markers", "verifier", "helper")
"""Settings that may be objects, which cache keys name as texts."""

_batch: ContextVar[Mapping[str, deque[Future[GenerationResult]]] | None] = ContextVar("tersely_batch", default=None)
"""Answers of the batch that the running calls belong to, by call."""


class ChatTersely(BaseChatModel, TerselyModel):
    """A chat model on one of tersely's engines.

    All settings but those about loading may be given again with each call or by `bind`. Thinking is in
    `content_blocks` (and `additional_kwargs["reasoning_content"]`), decisions in `response_metadata["tersely"]`.
    """

    stop: list[str] | None = None  # strings that end the answer; the thinking is not searched for them
    streaming: bool = False

    _cache_key: str = PrivateAttr(default_factory=lambda: uuid4().hex)

    def __init__(self, **settings: Any) -> None:
        self._check_arguments(settings, BaseChatModel, _NETWORK_OPTIONS)
        super().__init__(**settings)
        self._check_values()

    @property
    def _llm_type(self) -> str:
        return "tersely"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def _identifying_params(self) -> dict[str, Any]:
        params = {"model": self.model_name, "effort": self.effort, "preset": self.preset, "strategy": self.strategy}
        for name in (*TerselyModel.model_fields, "stop"):
            value = getattr(self, name)
            if name not in params and not (value is None or value is False or value == ()):
                params[name] = str(value) if name in _OBJECTS else value
        return params

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        return {"ls_model_name": self.model_name, **params, "ls_provider": "tersely"}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The cache key: everything that affects an answer, the weights of a model given as an object included."""
        params = self._get_invocation_params(stop=stop, **kwargs)
        if not isinstance(self.model, (str, os.PathLike)):
            params["fingerprint"] = self.session().engine.fingerprint() or self._cache_key
        return str(sorted(params.items(), key=lambda item: item[0]))

    def _resolve_model_profile(self) -> ModelProfile:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            reasoning_output=True,
            reasoning_effort_levels=list(EFFORTS),
            reasoning_effort_default=self.effort,
            max_output_tokens=self.max_tokens or MAX_OUTPUT_TOKENS,
            tool_choice=False,
        )
        engine = getattr(self.model, "engine", self.model)
        if hasattr(engine, "tokenizer"):
            profile["tool_calling"] = supports_tools(engine.tokenizer)
            if engine.context_length is not None:
                profile["max_input_tokens"] = engine.context_length
        return profile

    def get_token_ids(self, text: str) -> list[int]:
        return list(self.session().codec.encode(text))

    def _prepare(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, settings: Mapping[str, Any]
    ) -> Call:
        """Turn a call of LangChain's into one for the engine; raises OptionError for unknown settings."""
        check_known("setting of a call", settings, SETTINGS)
        session = self.session(settings.get("model"))
        tools, wish = apply_tool_choice(settings.get("tools") or (), settings.get("tool_choice"))
        tokenizer = session.engine.tokenizer
        sanitize = get_sanitizer(tokenizer, session.markers)
        prompt = conversion.as_prompt(messages, supports_tools(tokenizer), sanitize)
        for instruction in filter(None, (wish, conversion.format_instruction(settings.get("response_format")))):
            prompt = conversion.append_instruction(prompt, instruction)
        if tools:
            check_tools(session.engine)
        after_tool = bool(messages) and isinstance(messages[-1], ToolMessage)
        options = self._build_options(settings, after_tool, sanitize.sanitize_all(tools))
        stops = (self.stop or ()) if stop is None else stop
        name = str(settings.get("model") or self.model_name)
        return Call(session, prompt, options, tuple(stops), OPEN if tools else "", name)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        call = self._prepare(messages, stop, kwargs)
        future = _take_from_batch(call)
        result = get_runner(call.session.engine).generate(call) if future is None else future.result()
        return conversion.MessageBuilder(call, result).chat_result()

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        call = await run_in_executor(None, self._prepare, messages, stop, kwargs)
        future = _take_from_batch(call) or get_runner(call.session.engine).submit([call], cancellable=True)[0]
        return conversion.MessageBuilder(call, await asyncio.wrap_future(future)).chat_result()

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        call = self._prepare(messages, stop, kwargs)
        if (future := _take_from_batch(call)) is not None:
            yield from conversion.MessageBuilder(call, future.result()).chunks()
            return
        with contextlib.closing(get_runner(call.session.engine).stream(call)) as stream:
            for event in stream:
                yield _to_chunk(call, event)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = await run_in_executor(None, self._prepare, messages, stop, kwargs)
        if (future := _take_from_batch(call)) is not None:
            for chunk in conversion.MessageBuilder(call, await asyncio.wrap_future(future)).chunks():
                yield chunk
            return
        async with contextlib.aclosing(get_runner(call.session.engine).astream(call)) as stream:
            async for event in stream:
                yield _to_chunk(call, event)

    def batch(self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any) -> list[Any]:
        """See `Runnable.batch`; the inputs are one batch of the engine."""
        token = _batch.set(self._submit_batch(inputs, kwargs))
        try:
            results: list[Any] = super().batch(inputs, config, **kwargs)
            return results
        finally:
            _batch.reset(token)

    async def abatch(self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any) -> list[Any]:
        """See `Runnable.abatch`; the inputs are one batch of the engine."""
        token = _batch.set(await run_in_executor(None, self._submit_batch, inputs, kwargs))
        try:
            results: list[Any] = await super().abatch(inputs, config, **kwargs)
            return results
        finally:
            _batch.reset(token)

    def _submit_batch(
        self, inputs: Sequence[LanguageModelInput], given: Mapping[str, Any]
    ) -> Mapping[str, deque[Future[GenerationResult]]]:
        """Start the inputs that no cache answers and that share their options as one batch of the engine.

        LangChain still makes each input a call, with its callbacks, limits and errors, which is answered from here.
        """
        others = ("return_exceptions", "structured_output_format")
        settings = {name: value for name, value in given.items() if not name.endswith(others)}
        stop = settings.pop("stop", None)
        calls: list[Call] = []
        for item in inputs:
            with contextlib.suppress(TerselyError, ValueError):  # raised again when LangChain makes this call
                messages = self._convert_input(item).to_messages()
                if not self._is_cached(messages, stop, settings):
                    calls.append(self._prepare(messages, stop, settings))
        calls = [call for call in calls if call.options == calls[0].options]
        answers: defaultdict[str, deque[Future[GenerationResult]]] = defaultdict(deque)
        if calls:
            for call, future in zip(calls, get_runner(calls[0].session.engine).submit(calls), strict=True):
                answers[repr(call)].append(future)
        return dict(answers)

    def _is_cached(self, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]) -> bool:
        """Whether LangChain's cache has the answer; looked up in the way `BaseChatModel` does."""
        cache = self.cache if isinstance(self.cache, BaseCache) else get_llm_cache()
        if self.cache is False or cache is None:
            return False
        bare = [m if m.id is None else m.model_copy(update={"id": None}) for m in messages]
        return cache.lookup(dumps(bare), self._get_llm_string(stop=stop, **settings)) is not None

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Runnable:
        """The model with tools; calls are read from its answer, never from its thinking.

        `tool_choice` is a tool's name, "any", "auto" or "none"; a call can be asked for but not forced. Raises
        CapabilityError for a model whose chat template does not accept tools, which may load it.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        if schemas:
            check_tools(self.session(kwargs.get("model")).engine)
        apply_tool_choice(schemas, tool_choice)
        check_known("setting of a call", [name for name in kwargs if name != "ls_structured_output_format"], SETTINGS)
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: Any,
        *,
        include_raw: bool = False,
        method: str | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable:
        """A runnable of checked output, by a function call or else by JSON; it raises OutputParserException."""
        if method is None:
            method = "function_calling" if supports_tools(self.session().engine.tokenizer) else "json_schema"
        check_known("method", method, conversion.METHODS)
        check_known("setting of a call", kwargs, SETTINGS)
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw)
        traced = {"kwargs": {"method": method}, "schema": schema}
        wanted = conversion.response_format(schema, method)
        model = self.bind(response_format=wanted, ls_structured_output_format=traced, **kwargs)
        parser = conversion.SchemaOutputParser(wanted=schema)
        return conversion.include_raw_message(model, parser) if include_raw else model | parser


def _take_from_batch(call: Call) -> Future[GenerationResult] | None:
    """The answer to this call from the batch it belongs to, if any."""
    answers = (_batch.get() or {}).get(repr(call))
    with contextlib.suppress(IndexError):
        return answers.popleft() if answers is not None else None
    return None


def _to_chunk(call: Call, event: TextDelta | GenerationResult) -> ChatGenerationChunk:
    if isinstance(event, GenerationResult):
        return conversion.MessageBuilder(call, event).last_chunk()
    return conversion.to_chunk(event)


def effort_settings(model: BaseChatModel, effort: str) -> dict[str, Any]:
    """The `model_settings` that give a chat model an effort; raises OptionError if its profile has no such level."""
    if isinstance(model, ChatTersely):
        return {"effort": effort}
    name = OPENAI_EFFORTS.get(effort, effort)
    levels = (model.profile or {}).get("reasoning_effort_levels")
    if levels is None or name in levels:
        return {"reasoning_effort": name}
    for level in levels:
        if ALIASES.get(level, level) == effort:
            return {"reasoning_effort": level}
    raise OptionError(
        f"the model has no reasoning effort for {effort!r}; its levels are {', '.join(levels) or 'none'}; choose one "
        "of these, or pass settings= to say how the model gets its effort",
        code="unsupported_effort",
    )


def get_effort(model: BaseChatModel, settings: Mapping[str, Any]) -> str:
    """The effort that a chat model would use with these settings."""
    for name in ("effort", "reasoning_effort"):
        if effort := settings.get(name) or getattr(model, name, None):
            return canonical_effort(str(effort))
    return "hard"
