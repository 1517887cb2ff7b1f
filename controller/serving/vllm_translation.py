"""Translates requests of OpenAI's and Anthropic's clients into what vLLM's server understands, with their control."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...errors import TerselyError, unknown
from ..budgets import canonical_effort
from ..vllm.request_control import KEY, RequestControl, read_control
from .errors import RequestError, from_validation_error
from .schemas import ChatRequest, TerselyField, ThinkingOptions
from .settings import EFFORT_NAMES, answer_reserve, openai_effort

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages")
CHAT, RESPONSES, COMPLETIONS, MESSAGES = PATHS
M = TypeVar("M", bound=BaseModel)


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
    body = dict(given)
    own = _parse(TerselyField, KEY, body.pop(KEY, None)) or TerselyField()
    effort, cap = _effort_and_cap(path, body, own.effort or _api_effort(path, body), default.effort, caps)
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


def _parse(model: type[M], field: str, value: Any) -> M | None:
    """Validate one field of a body; None if it is absent."""
    if value is None:
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors()[0])
        raise from_validation_error([{**first, "loc": (field, *first["loc"])}], ChatRequest) from None


def _api_effort(path: str, body: Mapping[str, Any]) -> str | None:
    """The effort in the API's own field."""
    if path == RESPONSES:
        reasoning = body.get("reasoning")
        return reasoning.get("effort") if isinstance(reasoning, dict) else None
    return body.get("reasoning_effort") if path == CHAT else None


def _effort_and_cap(
    path: str, body: dict[str, Any], named: str | None, default: str, caps: Mapping[str, int]
) -> tuple[str, int | None]:
    """The effort, and the most thinking tokens that were requested; changes the body accordingly."""
    effort = named or default
    if effort not in EFFORT_NAMES:
        field = "reasoning.effort" if path == RESPONSES else "reasoning_effort"
        raise RequestError(str(unknown("effort", effort, EFFORT_NAMES)), param=field)
    budget = body.pop("thinking_token_budget", None)
    # vLLM knows Anthropic's field at Anthropic's endpoint only.
    anthropic = body.get("thinking") if path == MESSAGES else body.pop("thinking", None)
    thinking = _parse(ThinkingOptions, "thinking", anthropic)
    if thinking is not None:
        effort = "none" if thinking.type == "disabled" else effort
        budget = budget if thinking.budget_tokens is None else thinking.budget_tokens
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < -1):
        raise RequestError(f"the thinking budget is {budget!r}; accepted: tokens", param="thinking_token_budget")
    effort = "none" if budget == 0 else effort
    if named is not None or effort == "none":
        name = "medium" if effort == "auto" else openai_effort(effort)  # for the chat template
        if path == CHAT:
            body["reasoning_effort"] = name
        elif path == RESPONSES:
            body["reasoning"] = {**(body.get("reasoning") or {}), "effort": name}
    cap = caps.get(openai_effort(effort)) if effort != "auto" and (named or default != "normal") else None
    limits = [limit for limit in (cap, None if budget == -1 else budget) if limit is not None]
    return effort, min(limits, default=None)


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
            thinking=cap or control.thinking,
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
