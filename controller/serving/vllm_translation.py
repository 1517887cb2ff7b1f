"""Translates requests of OpenAI's and Anthropic's clients into what vLLM's server understands, with their control."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import TerselyError
from ..budgets import UNLIMITED, canonical_effort
from ..vllm.request_control import KEY, RequestControl, read_control
from .errors import RequestError, from_validation_error
from .schemas import Effort, TerselyField, ThinkingOptions
from .settings import answer_reserve, openai_effort

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages")
CHAT, RESPONSES, COMPLETIONS, MESSAGES = PATHS


class _Reasoning(BaseModel):
    effort: Effort | None = None


class _OutputConfig(BaseModel):
    effort: Effort | None = None


class ControlFields(BaseModel):
    """The fields of a request that say how much to think; the others are vLLM's own matter."""

    model_config = ConfigDict(strict=True)

    tersely: TerselyField | None = None
    reasoning_effort: Effort | None = None
    reasoning: _Reasoning | None = None
    thinking: ThinkingOptions | None = None  # which vLLM knows at Anthropic's endpoint only
    output_config: _OutputConfig | None = None  # Anthropic's
    thinking_token_budget: Annotated[int, Field(ge=-1)] | None = None


@dataclass(frozen=True, slots=True)
class VllmRequestMapping:
    """A request as vLLM's server receives it."""

    body: dict[str, Any]
    effort: str
    control: RequestControl | None  # None if nothing is controlled
    include_trace: bool = True  # whether the reply lists the decisions
    usage_added: bool = False  # a stream ends with the usage for the metrics only; the client did not ask for it


def translate(
    path: str, given: Mapping[str, Any], default: RequestControl, caps: Mapping[str, int], tag: str
) -> VllmRequestMapping:
    """Translate a request; raises RequestError for errors in the fields that are ours.

    `default` is the control of requests that say nothing, `caps` are thinking tokens by OpenAI effort, and `tag`
    identifies the request's trace.
    """
    try:
        fields = ControlFields.model_validate(given)
    except ValidationError as error:
        raise from_validation_error(error.errors(), ControlFields) from None
    dropped = (KEY, "thinking_token_budget") if path == MESSAGES else (KEY, "thinking_token_budget", "thinking")
    body = {name: value for name, value in given.items() if name not in dropped}
    own = fields.tersely or TerselyField()
    effort, cap = _effort_and_cap(path, body, fields, default.effort, caps)
    control = _control(path, body, own, default, effort, cap)
    xargs = {name: value for name, value in (body.get("vllm_xargs") or {}).items() if name != KEY}
    if control is not None:
        xargs[KEY] = json.dumps({**control.as_dict(), "tag": tag})
    if xargs or "vllm_xargs" in body:
        body["vllm_xargs"] = xargs
    options = body.get("stream_options") or {}
    usage_added = bool(path in (CHAT, COMPLETIONS) and body.get("stream") and isinstance(options, dict))
    usage_added = usage_added and not options.get("include_usage")
    if usage_added:
        body["stream_options"] = {**options, "include_usage": True}
    return VllmRequestMapping(body, effort, control, own.trace, usage_added)


def _effort_and_cap(
    path: str, body: dict[str, Any], fields: ControlFields, default: str, caps: Mapping[str, int]
) -> tuple[str, int | None]:
    """The effort, and the thinking tokens of the request, else of the effort; changes the body accordingly."""
    api_efforts = {
        CHAT: fields.reasoning_effort,
        RESPONSES: fields.reasoning and fields.reasoning.effort,
        MESSAGES: fields.output_config and fields.output_config.effort,
    }
    named = (fields.tersely and fields.tersely.effort) or api_efforts.get(path)
    effort, budget = named or default, fields.thinking_token_budget
    if fields.thinking is not None:
        effort = "none" if fields.thinking.type == "disabled" else effort
        budget = budget if fields.thinking.budget_tokens is None else fields.thinking.budget_tokens
    effort = "none" if budget == 0 else effort
    if named is not None or effort == "none":
        name = "medium" if effort == "auto" else openai_effort(effort)  # for the chat template
        if path == CHAT:
            body["reasoning_effort"] = name
        elif path == RESPONSES:
            body["reasoning"] = {**(body.get("reasoning") or {}), "effort": name}
    cap = caps.get(openai_effort(effort)) if effort != "auto" and (named or default != "normal") else None
    return effort, UNLIMITED if budget == -1 else budget or cap


def _control(
    path: str, body: Mapping[str, Any], own: TerselyField, default: RequestControl, effort: str, cap: int | None
) -> RequestControl | None:
    """The control of a request; raw completions are controlled only if they ask for it."""
    given = (body.get("vllm_xargs") or {}).get(KEY)
    try:
        control = default if given is None else read_control(given)
        if own.policies is not None:
            control = replace(control, preset=None, policies={name: {} for name in own.policies})
        elif own.preset is not None:
            control = replace(control, preset=own.preset, policies=None)
        elif path == COMPLETIONS and given is None:
            return None
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
        control = replace(
            control,
            effort=canonical_effort(effort),
            thinking_budget=cap or control.thinking_budget,
            shadow=own.shadow or control.shadow,
            answer_reserve=answer_reserve(limit, control.answer_reserve) if isinstance(limit, int) else None,
            question=_last_question(body),
        )
    except TerselyError as error:
        raise RequestError(str(error), param=KEY) from None
    return None if control.disabled or limit == 1 else control


def _last_question(body: Mapping[str, Any]) -> str:
    """The text of the last message, for policies that read it."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else ""
