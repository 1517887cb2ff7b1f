"""POST /v1/chat/completions: what is accepted, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .schemas import (
    EXAMPLE,
    Body,
    Content,
    Effort,
    Free,
    Never,
    Nothing,
    ParsedRequest,
    Stops,
    StrictModel,
    Temperature,
    TerselyField,
    ThinkingOptions,
    Tokens,
    TopK,
    TopP,
    get_text,
)


class Message(StrictModel):
    """One message; what clients send back of an earlier reply is taken as it was given."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[Free] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Free] | None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        kept = self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        if thought := self.reasoning_content or self.reasoning:
            kept["reasoning_content"] = thought
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": get_text(self.content), **kept}


class StreamOptions(StrictModel):
    """Of a stream: whether usage comes at its end."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(StrictModel):
    """The only form of answers: text. Nothing here holds a model to a grammar."""

    type: Literal["text"]


class TemplateOptions(StrictModel):
    """What is passed to chat templates elsewhere; here `false` is effort none."""

    enable_thinking: bool | None = None


class ChatRequest(Body):
    """The body; fields that change nothing here are accepted and not looked at."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, examples=[[{"role": "user", "content": EXAMPLE}]])]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stop: Stops | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: int | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    thinking: ThinkingOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None
    response_format: TextFormat | None = None
    tools: list[Free] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tersely: TerselyField | None = None

    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: Never | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    modalities: list[Literal["text"]] | None = None

    metadata: Free | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> ChatRequest:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def asked(self) -> ParsedRequest:
        """What the body asks for."""
        own = self.tersely or TerselyField()
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        newer = self.max_completion_tokens is not None
        return ParsedRequest(
            self.model,
            [message.plain() for message in self.messages],
            self._efforts(own),
            self._budgets(),
            self.max_completion_tokens if newer else self.max_tokens,
            "max_completion_tokens" if newer else "max_tokens",
            self.temperature,
            self.top_p,
            self.top_k,
            self.seed,
            self.n or 1,
            tuple(stop),
            () if self.tool_choice == "none" else tuple(self.tools or ()),
            own,
        )

    def _efforts(self, own: TerselyField) -> Mapping[str, str]:
        switched = self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking is False
        kind = self.thinking.type if self.thinking is not None else "enabled"
        adaptive = kind == "adaptive" and self.reasoning_effort is None
        found = {
            "tersely.effort": own.effort,
            "reasoning_effort": self.reasoning_effort,
            "chat_template_kwargs.enable_thinking": "none" if switched else None,
            "thinking": "none" if kind == "disabled" else "auto" if adaptive else None,
        }
        return {field: effort for field, effort in found.items() if effort is not None}

    def _budgets(self) -> Mapping[str, int]:
        given = self.thinking.budget_tokens if self.thinking is not None else None
        found = {"thinking_token_budget": self.thinking_token_budget, "thinking.budget_tokens": given}
        return {field: budget for field, budget in found.items() if budget is not None}
