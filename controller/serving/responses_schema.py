"""POST /v1/responses: what is accepted, and what it asks for. Nothing is stored between requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .chat import TextFormat
from .schemas import (
    EXAMPLE,
    Body,
    Content,
    Effort,
    Free,
    Never,
    ParsedRequest,
    StrictModel,
    Temperature,
    TerselyField,
    Tokens,
    TopP,
    by_shape,
    get_text,
)


class InputMessage(StrictModel):
    """A message of the input, or one of an earlier reply sent back."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class ThoughtText(StrictModel):
    """Text of earlier thinking."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(StrictModel):
    """Thinking of an earlier reply sent back; it goes with the message that follows."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ThoughtText] | None = None
    content: list[ThoughtText] | None = None
    encrypted_content: None = None
    status: str | None = None


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"item {kind}"


Item = Annotated[
    Annotated[InputMessage, Tag("item message")] | Annotated[InputReasoning, Tag("item reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unsupported_item",
        custom_error_message="Input should be an item of type 'message' or 'reasoning'",
    ),
]


class Reasoning(StrictModel):
    """How much to think; summaries are not made, the thinking itself is there."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(StrictModel):
    """The form of the answer."""

    format: TextFormat | None = None


class ResponseStreamOptions(StrictModel):
    """Of a stream; changes nothing here."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Body):
    """The body; fields that change nothing here are accepted and not looked at."""

    model: str
    input: Annotated[
        Annotated[str, Tag("a text")] | Annotated[list[Item], Field(min_length=1), Tag("a list")],
        Discriminator(by_shape),
        Field(examples=[EXAMPLE]),
    ]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: int | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tersely: TerselyField | None = None

    background: Never | None = None
    conversation: None = None
    previous_response_id: None = None
    prompt: None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    tools: Annotated[list[Free], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    truncation: Literal["disabled"] | None = None

    max_tool_calls: int | None = None
    metadata: Free | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    def asked(self) -> ParsedRequest:
        """What the body asks for."""
        own = self.tersely or TerselyField()
        found = {"tersely.effort": own.effort, "reasoning.effort": self.reasoning.effort if self.reasoning else None}
        return ParsedRequest(
            self.model,
            self._messages(),
            {field: effort for field, effort in found.items() if effort is not None},
            {},
            self.max_output_tokens,
            "max_output_tokens",
            self.temperature,
            self.top_p,
            seed=self.seed,
            tersely=own,
            prompt="input",
        )

    def echo(self) -> dict[str, Any]:
        """What a reply gives back of the body."""
        own = self.reasoning or Reasoning()
        kept = self.model_dump(include={"instructions", "max_output_tokens", "temperature", "top_p", "user"})
        return {**kept, "metadata": self.metadata or {}, "reasoning": {"effort": own.effort, "summary": None}}

    def _messages(self) -> Sequence[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        if self.instructions:
            made.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*made, {"role": "user", "content": self.input}]
        thought = ""
        for item in self.input:
            if isinstance(item, InputReasoning):
                thought = "".join(part.text for part in item.content or item.summary or ())
                continue
            role = "system" if item.role == "developer" else item.role
            message = {"role": role, "content": get_text(item.content)}
            if thought and role == "assistant":
                message["reasoning_content"] = thought
            thought = ""
            made.append(message)
        return made
