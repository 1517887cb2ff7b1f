"""The parts of requests that several endpoints share, and what a checked request comes to. Knows no engine.

Fields that would change what is written and cannot be honoured are refused; those that change nothing are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from ...errors import unknown
from ..policies import POLICIES, PRESETS
from .effort_budgets import EFFORT_NAMES

EXAMPLE = "What is 17 times 3?"  # the question in the description of the API, which clients and tools try first


class StrictModel(BaseModel):
    """A body whose fields are all known and of the right type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Body(StrictModel):
    """A whole body, whose text is such that it can be made tokens of."""

    @model_validator(mode="before")
    @classmethod
    def _text_is_whole(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        try:
            json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError("some text holds half of a surrogate pair; send whole characters") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(str(error)) from None
        return given


def by_shape(value: Any) -> str:
    """Tell the cases of a union of text and a list apart, so that an error speaks of one of them."""
    return "a list" if isinstance(value, list) else "a text"


def _effort(name: str) -> str:
    if name not in EFFORT_NAMES:
        raise unknown("effort", name, EFFORT_NAMES)
    return name


def _preset(name: str) -> str:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return name


def _policies(names: list[str]) -> list[str]:
    for name in names:
        if name not in POLICIES:
            raise unknown("policy", name, POLICIES)
    if len(set(names)) < len(names):
        raise ValueError(f"policies given twice: {', '.join(names)}; accepted: each at most once")
    return names


def _false(asked: bool) -> bool:
    if asked:
        raise ValueError("this server cannot do that; accepted: False")
    return asked


def _parts(content: Any) -> Any:
    """Say plainly which parts of a message are not understood."""
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in TEXT_TYPES and isinstance(kind, str):
                raise ValueError(f"parts of type {kind!r} are not supported; accepted: {', '.join(TEXT_TYPES)}")
    return content


TEXT_TYPES = ("text", "input_text", "output_text")
Effort = Annotated[str, AfterValidator(_effort), Field(json_schema_extra={"enum": list(EFFORT_NAMES)})]
Preset = Annotated[str, AfterValidator(_preset), Field(json_schema_extra={"enum": list(PRESETS)})]
Policies = Annotated[list[Annotated[str, Field(json_schema_extra={"enum": list(POLICIES)})]], AfterValidator(_policies)]
Free = dict[str, Any]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[
    Annotated[Stop, Tag("a text")] | Annotated[list[Stop], Field(max_length=4), Tag("a list")],
    Discriminator(by_shape),
]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=1 << 31)]
Tokens = Annotated[int, Field(ge=1, le=1 << 31)]
Nothing = Annotated[float, Field(ge=0, le=0)]
"""A number that may be given as long as it changes nothing."""

Never = Annotated[bool, AfterValidator(_false), Field(json_schema_extra={"const": False})]
"""What can only be declined. `Literal[False]` would take the number 0 for it."""


class TextPart(StrictModel):
    """A part of a message; other kinds than text are not understood."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Free] | None = None
    logprobs: list[Free] | None = None


Content = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[TextPart], Tag("a list")],
    Discriminator(by_shape),
    BeforeValidator(_parts),
]


def get_text(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message's content."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


class ThinkingOptions(StrictModel):
    """Anthropic's way to set a budget, to ask for no thinking, or to leave it open (effort `auto`)."""

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
    def _budget_goes_with_enabled(self) -> ThinkingOptions:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise ValueError("budget_tokens goes with type 'enabled', and is required there")
        return self


class TerselyField(StrictModel):
    """What only tersely knows: in place of the server's own settings, for one request.

    trace: whether the reply says what was decided and why.
    """

    effort: Effort | None = None
    preset: Preset | None = None
    policies: Policies | None = None
    shadow: bool = False
    trace: bool = True


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What a checked request asks for, whichever endpoint it came by; None leaves it to the server.

    efforts, budgets: field -> value, of all the fields in which one was given. tools: as OpenAI describes them. prompt:
    the field that the messages came by.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    efforts: Mapping[str, str]
    budgets: Mapping[str, int]
    max_tokens: int | None
    max_tokens_field: str
    temperature: float | None
    top_p: float | None
    top_k: int | None = None
    seed: int | None = None
    n: int = 1
    stops: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    tersely: TerselyField = field(default_factory=TerselyField)
    prompt: str = "messages"
