"""The requests that the servers accept. Knows no engine.

Fields that would change the text and cannot be honoured are refused; fields that change nothing are accepted.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ...errors import check_known
from ..options import option_field
from ..policies import get_presets, list_policies
from .settings import EFFORT_NAMES

_METADATA = 16_384  # characters of a request's metadata, which is kept and repeated in replies
CHANGING = (
    *("response_format", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
    "tool_choice",
)
"""Fields that only a chat endpoint can honour; any other model takes them as long as they are empty or UNCHANGING."""
UNCHANGING: Sequence[Any] = ("none", "auto", {"type": "text"})
_LABELS = (
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "store", "user"),
)
_FIELDS = 100  # most fields of a body, far more than are known
EXAMPLE = "What is 17 times 3?"  # shown in the API description; clients and tools try it first


class StrictModel(BaseModel):
    """A model that refuses unknown fields and wrong types."""

    model_config = ConfigDict(extra="forbid", strict=True)


def by_shape(value: Any) -> str:
    """Choose between text and list, so that an error names one of them only."""
    return "a list" if isinstance(value, list) else "a text"


def _one_of(what: str, known: Collection[str]) -> AfterValidator:
    """Checks a name."""

    def check(name: str) -> str:
        check_known(what, name, known)
        return name

    return AfterValidator(check)


def _check_policies(names: list[str]) -> list[str]:
    check_known("policy", names, list_policies())
    if len(set(names)) < len(names):
        raise ValueError(f"policies given twice: {', '.join(names)}; accepted: each at most once")
    return names


def _check_size(value: dict[str, Any]) -> dict[str, Any]:
    if (size := len(json.dumps(value))) > _METADATA:
        raise ValueError(f"has {size} characters as JSON; accepted: at most {_METADATA}")
    return value


def _check_false(value: bool) -> bool:
    if value:
        raise ValueError("this server cannot do that; accepted: False")
    return value


Effort = Annotated[str, _one_of("effort", EFFORT_NAMES), Field(json_schema_extra={"enum": list(EFFORT_NAMES)})]
Preset = Annotated[str, _one_of("preset", get_presets()), Field(json_schema_extra={"enum": list(get_presets())})]
PolicyName = Annotated[str, Field(json_schema_extra={"enum": list_policies()})]
Policies = Annotated[list[PolicyName], Field(fail_fast=True, max_length=32), AfterValidator(_check_policies)]
JsonObject = dict[str, Any]
JsonObjects = Annotated[list[JsonObject], Field(fail_fast=True)]
Metadata = Annotated[JsonObject, Field(max_length=16), AfterValidator(_check_size)]
Label = Annotated[str, Field(max_length=512)]  # a text that changes nothing
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[
    Annotated[Stop, Tag("a text")] | Annotated[list[Stop], Field(fail_fast=True, max_length=4), Tag("a list")],
    Discriminator(by_shape),
]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=1 << 31)]
Tokens = Annotated[int, Field(ge=1, le=1 << 31)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Never = Annotated[bool, AfterValidator(_check_false), Field(json_schema_extra={"const": False})]
"""A feature that can only be declined. `Literal[False]` would also accept the number 0."""


class TextPart(StrictModel):
    """A text part of a message; other kinds of parts are not supported."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: JsonObjects | None = None
    logprobs: JsonObjects | None = None


Content = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("a list")],
    Discriminator(by_shape),
]


def get_text(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message's content."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


class TextFormat(StrictModel):
    """The format of the answer: text only, since no grammar is enforced here."""

    type: Literal["text"]


class ThinkingOptions(StrictModel):
    """Anthropic's field: a thinking budget, no thinking, or effort `auto`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "enabled"}}},
            "then": {"required": ["budget_tokens"], "properties": {"budget_tokens": {"type": "integer"}}},
            "else": {"properties": {"budget_tokens": {"type": "null"}}},
        }
    )

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _budget_belongs_to_enabled(self) -> Self:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise ValueError("budget_tokens goes with type 'enabled', and is required there")
        return self


class TerselyField(StrictModel):
    """What only tersely understands; overrides the server's settings for one request.

    `trace`: whether the reply lists the decisions.
    """

    effort: Effort | None = option_field("effort", default=None)
    preset: Preset | None = option_field("preset", default=None)
    policies: Policies | None = option_field("policies", default=None)
    shadow: bool | None = option_field("shadow", default=None)
    trace: bool = True


class RequestBody(StrictModel):
    """What the bodies of all endpoints have in common; None leaves a field to the server."""

    prompt_field: ClassVar[str]
    limit_fields: ClassVar[Sequence[str]]
    effort_fields: ClassVar[Sequence[str]]
    budget_fields: ClassVar[Sequence[str]] = ()

    model: str
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: int | None = None
    tersely: TerselyField | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    safety_identifier: Label | None = None
    service_tier: Label | None = None
    store: bool | None = None
    user: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_can_be_encoded(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if len(body) > _FIELDS:
            raise ValueError(f"the body has {len(body)} fields; accepted: at most {_FIELDS}")
        try:
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError("some text contains half of a surrogate pair; send whole characters") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(str(error)) from None
        return body

    @property
    def own(self) -> TerselyField:
        """The field `tersely`, with its defaults if it is absent."""
        return self.tersely or TerselyField()

    @property
    def output_limit(self) -> tuple[str, int | None]:
        """The most output tokens, and the name of their field."""
        return next(iter(self._given(self.limit_fields).items()), (self.limit_fields[0], None))

    def efforts(self) -> Mapping[str, str]:
        """The effort of each field that names one."""
        return self._given(self.effort_fields)

    def budgets(self) -> Mapping[str, int]:
        """The thinking tokens of each field that names a number."""
        return self._given(self.budget_fields)

    def name_conversation(self) -> str:
        """What all requests of a conversation have in common: the client's name for it, else how it begins."""
        given = self.prompt_cache_key or self.safety_identifier or self.user
        return given or next((str(m.get("content")) for m in self.to_messages() if m.get("role") != "system"), "")

    def passed_fields(self) -> dict[str, Any]:
        """What is given of the fields that only a chat endpoint can honour, and those that change no text."""
        names = {*CHANGING, *_LABELS}
        if getattr(self, "tool_choice", None) == "none":  # no tools are offered then
            names -= {"tool_choice", "parallel_tool_calls"}
        return self.model_dump(include=names, exclude_none=True)

    @abstractmethod
    def to_messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates expect it."""

    def offered_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model may call, as chat templates expect them."""
        return ()

    def _given(self, paths: Sequence[str]) -> dict[str, Any]:
        """The values of the fields at these paths that have one."""
        given = {}
        for path in paths:
            value: Any = self
            for name in path.split("."):
                value = getattr(value, name, None)
            if value is not None:
                given[path] = value
        return given


class Message(StrictModel):
    """A message; fields that clients send back from an earlier reply are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: JsonObjects | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: JsonObjects | None = None
    audio: None = None
    function_call: None = None

    def to_dict(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": get_text(self.content)}
        message |= self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        if thinking := self.reasoning_content or self.reasoning:
            message["reasoning_content"] = thinking
        return message


class ObfuscationOptions(StrictModel):
    """Options of a stream that change nothing here."""

    include_obfuscation: bool | None = None


class StreamOptions(ObfuscationOptions):
    """Options of a chat completion's stream."""

    include_usage: bool | None = None


class TemplateOptions(StrictModel):
    """Arguments of the chat template; `enable_thinking: false` is effort none."""

    enable_thinking: bool | None = None


class ChatRequest(RequestBody):
    """The body of POST /v1/chat/completions."""

    prompt_field = "messages"
    limit_fields = ("max_completion_tokens", "max_tokens")
    effort_fields = ("tersely.effort", "reasoning_effort")
    budget_fields = ("thinking_token_budget", "thinking.budget_tokens")

    messages: Annotated[
        list[Message], Field(fail_fast=True, min_length=1, examples=[[{"role": "user", "content": EXAMPLE}]])
    ]
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stop: Stops | None = None
    top_k: TopK | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    thinking: ThinkingOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None
    tools: JsonObjects | None = None

    response_format: JsonObject | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tool_choice: Literal["none", "auto", "required"] | JsonObject | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def to_messages(self) -> list[dict[str, Any]]:
        return [message.to_dict() for message in self.messages]

    def offered_tools(self) -> tuple[dict[str, Any], ...]:
        return () if self.tool_choice == "none" else tuple(self.tools or ())

    def efforts(self) -> Mapping[str, str]:
        kind = self.thinking.type if self.thinking is not None else None
        efforts = self._given(self.effort_fields)
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.enable_thinking is False:
            efforts["chat_template_kwargs.enable_thinking"] = "none"
        if kind == "disabled" or (kind == "adaptive" and self.reasoning_effort is None):
            efforts["thinking"] = "none" if kind == "disabled" else "auto"
        return efforts
