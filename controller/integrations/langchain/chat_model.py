"""`ChatTersely`: a reasoning model under control as LangChain's chat model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.load import dumps
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, run_in_executor
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from ....errors import TerselyError, unknown
from ...budgets import EFFORTS, canonical_effort
from ...options import DEFAULT_MAX_NEW_TOKENS
from ...policies import make_policies
from ...session import Session
from ...text.tool_calls import apply_tool_choice, check_tools, supports_tools
from ...trace import GenerationResult
from .batch_context import BatchContext, current_batch
from .call_options import check_arguments, check_settings, open_session
from .messages import to_chunk
from .prepared_call import SETTINGS, PreparedCall, answer, answer_together, prepare_call
from .runner import aiter_deltas, iter_deltas
from .structured_output import METHODS, SchemaOutputParser, response_format, with_raw

# Arguments that LangChain gives to any chat model and that mean something only where there is a network.
_OF_NETWORKS = ("api_key", "base_url", "timeout", "max_retries")


class ChatTersely(BaseChatModel):
    """A chat model on one of tersely's engines.

    model: a name or folder, an `Engine` or a `Session`; one given by name is loaded at its first use. The other options
    mean what they mean in `tersely.generate`, and may be given again with each call or by `bind`. Thinking is in
    `content_blocks` (and `additional_kwargs["reasoning_content"]`), decisions in `response_metadata["tersely"]`.
    stop: strings that end the answer; thinking is not searched for them.
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
    stop: list[str] | None = None
    probes: str | None = None
    answer_reserve: int | None = None
    strategy: Any = "tiers"
    markers: Any = None
    think_prompt: bool = False
    verifier: Any = None
    helper: Any = None
    streaming: bool = False

    _sessions: dict[str, Session] = PrivateAttr(default_factory=dict)
    _mark: str = PrivateAttr(default_factory=lambda: uuid4().hex)

    def __init__(self, **given: Any) -> None:
        check_arguments(given, type(self), BaseChatModel, _OF_NETWORKS)
        super().__init__(**given)
        canonical_effort(self.effort)
        make_policies(self.preset, self.policies)

    # What LangChain wants to know of a model

    @property
    def _llm_type(self) -> str:
        return "tersely"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """See `Serializable`; a model given as an object is not kept."""
        return True

    @property
    def model_name(self) -> str:
        """The model's name."""
        if isinstance(self.model, (str, os.PathLike)):
            return os.fspath(self.model)
        return str(getattr(self.model, "engine", self.model).name)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        params = {"model": self.model_name, "effort": self.effort, "preset": self.preset, "strategy": self.strategy}
        for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "probes", "answer_reserve"):
            if (value := getattr(self, name)) is not None:
                params[name] = value
        for name in ("policies", "markers", "verifier", "helper"):
            if (value := getattr(self, name)) is not None:
                params[name] = str(value)
        return params | ({"think_prompt": True} if self.think_prompt else {})

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "tersely"
        params.setdefault("ls_model_name", self.model_name)
        return params

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """By what a cache knows the model: all that decides an answer, and of an object what model it is."""
        about = self._get_invocation_params(stop=stop, **kwargs)
        if not isinstance(self.model, (str, os.PathLike)):
            about["fingerprint"] = self._session().engine.fingerprint() or self._mark
        return str(sorted(about.items(), key=lambda item: item[0]))

    def _resolve_model_profile(self) -> ModelProfile:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            reasoning_output=True,
            reasoning_effort_levels=list(EFFORTS),
            reasoning_effort_default=self.effort,
            max_output_tokens=self.max_tokens or DEFAULT_MAX_NEW_TOKENS,
            tool_choice=False,
        )
        engine = getattr(self.model, "engine", self.model)
        if hasattr(engine, "tokenizer"):
            profile["tool_calling"] = supports_tools(engine.tokenizer)
            if engine.context_length is not None:
                profile["max_input_tokens"] = engine.context_length
        return profile

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens of a text."""
        return list(self._session().codec.encode(text))

    # From a call to what an engine is asked

    def _session(self, model: Any = None) -> Session:
        """The session of this model, or of another one by name, loaded at its first use."""
        model = self.model if model is None else model
        if isinstance(model, Session):
            return model
        name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
        if name not in self._sessions:
            self._sessions[name] = open_session(name or model, self)
        return self._sessions[name]

    def _asked(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]
    ) -> PreparedCall:
        """The call as it is put to the engine; raises OptionError for settings it does not know."""
        check_settings(given, SETTINGS)
        own = {name: getattr(self, name) for name in SETTINGS if name in type(self).model_fields and name != "model"}
        if "effort" in given:  # the later one counts, whichever name it goes by
            own["effort"] = given["effort"]
        stops = (self.stop or ()) if stop is None else stop
        name = str(given.get("model") or self.model_name)
        return prepare_call(self._session(given.get("model")), name, messages, stops, {**own, **given})

    # Answering

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        asked = self._asked(messages, stop, kwargs)
        return asked.made(self._of_batch(asked) or answer(asked)).result()

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if current_batch.get() is not None:
            return await run_in_executor(None, self._generate, messages, stop, **kwargs)
        asked = await run_in_executor(None, self._asked, messages, stop, kwargs)
        async for said in aiter_deltas(asked.answering):
            if isinstance(said, GenerationResult):
                return asked.made(said).result()
        raise AssertionError("an answering ends with a generation or an error")

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._asked(messages, stop, kwargs)
        generation = self._of_batch(asked)
        if generation is not None:
            yield from asked.made(generation).chunks()
            return
        with contextlib.closing(iter_deltas(asked.answering)) as told:
            for said in told:
                yield asked.made(said).last() if isinstance(said, GenerationResult) else to_chunk(*said)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = await run_in_executor(None, self._asked, messages, stop, kwargs)
        async with contextlib.aclosing(aiter_deltas(asked.answering)) as told:
            async for said in told:
                yield asked.made(said).last() if isinstance(said, GenerationResult) else to_chunk(*said)

    def batch(
        self, inputs: list[LanguageModelInput], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """See `Runnable.batch`; the inputs are one batch of the engine."""
        token = current_batch.set(self._together(inputs, kwargs))
        try:
            made: list[Any] = super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
            return made
        finally:
            current_batch.reset(token)

    async def abatch(
        self, inputs: list[LanguageModelInput], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """See `Runnable.abatch`; the inputs are one batch of the engine."""
        token = current_batch.set(await run_in_executor(None, self._together, inputs, kwargs))
        try:
            made: list[Any] = await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
            return made
        finally:
            current_batch.reset(token)

    def _together(self, inputs: Sequence[LanguageModelInput], given: Mapping[str, Any]) -> BatchContext:
        """The calls of a batch that no cache answers and that can be put together, ready to be made as one."""
        settings = {name: value for name, value in given.items() if not name.endswith("structured_output_format")}
        stop = settings.pop("stop", None)
        asked: list[PreparedCall] = []
        for one in inputs:
            with contextlib.suppress(TerselyError, ValueError):  # its own call will raise it
                messages = self._convert_input(one).to_messages()
                if not self._is_cached(messages, stop, settings):
                    asked.append(self._asked(messages, stop, settings))
        asked = [one for one in asked if one.options == asked[0].options]
        return BatchContext([one.key for one in asked], lambda: answer_together(asked))

    def _of_batch(self, asked: PreparedCall) -> GenerationResult | None:
        together = current_batch.get()
        return None if together is None else together.take(asked.key)

    def _is_cached(self, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]) -> bool:
        """Whether LangChain's cache has the answer; looked up in the way `BaseChatModel` does."""
        cache = self.cache if isinstance(self.cache, BaseCache) else get_llm_cache()
        if self.cache is False or cache is None:
            return False
        bare = [m if m.id is None else m.model_copy(update={"id": None}) for m in messages]
        return cache.lookup(dumps(bare), self._get_llm_string(stop=stop, **settings)) is not None

    # Tools and structured answers

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Runnable:
        """The model with tools bound; calls are read out of its answer, never out of its thinking.

        tool_choice: a tool's name, "any", "auto" or "none"; a call is asked for and cannot be forced. Raises
        CapabilityError for a model whose chat template knows no tools, which may load the model.
        """
        described = [convert_to_openai_tool(tool) for tool in tools]
        if described:
            check_tools(self._session(kwargs.get("model")).engine)
        apply_tool_choice(described, tool_choice)
        check_settings([name for name in kwargs if name != "ls_structured_output_format"], SETTINGS)
        return self.bind(tools=described, tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: Any,
        *,
        include_raw: bool = False,
        method: str | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable:
        """A runnable whose output fits the schema, or that raises OutputParserException.

        method: "function_calling", "json_schema" or "json_mode"; None calls a function where the model can be told
        tools. What is asked for in words may fail, so the answer is checked in any case; strict changes nothing.
        """
        if method is None:
            method = METHODS[0] if supports_tools(self._session().engine.tokenizer) else METHODS[1]
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        check_settings(kwargs, SETTINGS)
        if method == METHODS[0]:
            return super().with_structured_output(schema, include_raw=include_raw)
        said = {"kwargs": {"method": method}, "schema": schema}
        model = self.bind(response_format=response_format(schema, method), ls_structured_output_format=said, **kwargs)
        return (
            with_raw(model, SchemaOutputParser(wanted=schema))
            if include_raw
            else model | SchemaOutputParser(wanted=schema)
        )
