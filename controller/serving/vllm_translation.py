"""From what clients of the OpenAI and Anthropic APIs ask to what vLLM's server understands, control included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...errors import OptionError, TerselyError, unknown
from ..budgets import canonical_effort
from ..vllm.request_control import KEY, RequestControl, read_control
from .chat import ChatRequest
from .effort_budgets import EFFORT_NAMES, OURS, answer_reserve
from .errors import RequestError, from_validation_error
from .schemas import TerselyField, ThinkingOptions

CHAT, RESPONSES, COMPLETIONS, MESSAGES = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/completions",
    "/v1/messages",
)
_THINKING: TypeAdapter[ThinkingOptions] = TypeAdapter(ThinkingOptions)
PATHS = (CHAT, RESPONSES, COMPLETIONS, MESSAGES)


@dataclass(frozen=True, slots=True)
class VllmRequestMapping:
    """A request as vLLM's server gets it.

    effort, control: what was settled on; control is None where nothing is controlled. trace: the reply tells decisions.
    usage_added: the usage at the end of a stream is for us, the client did not ask for it.
    """

    body: dict[str, Any]
    effort: str
    control: RequestControl | None
    trace: bool = True
    usage_added: bool = False


def translate(
    path: str, given: Mapping[str, Any], default: RequestControl, caps: Mapping[str, int], tag: str
) -> VllmRequestMapping:
    """The request of a client in vLLM's terms; raises RequestError for what is wrong in the fields that are ours.

    default: where a request says nothing. caps: thinking tokens by effort. tag: by which its trace will be known.
    """
    body = dict(given)
    own = _own(body.pop(KEY, None))
    effort, cap = _effort(path, body, own.effort or _asked(path, body), default.effort, caps)
    control = _control(path, body, own, default, effort, cap, tag)
    xargs = {name: value for name, value in (body.get("vllm_xargs") or {}).items() if name != KEY}
    if control is not None:
        xargs[KEY] = json.dumps(control.as_dict())
    if xargs or "vllm_xargs" in body:
        body["vllm_xargs"] = xargs
    usage_added = path in (CHAT, COMPLETIONS) and bool(body.get("stream")) and _add_usage(body)
    return VllmRequestMapping(body, effort, control, own.trace, usage_added)


def _own(given: Any) -> TerselyField:
    try:
        return TerselyField.model_validate({} if given is None else given)
    except ValidationError as error:
        raise _under(KEY, error) from None


def _asked(path: str, body: Mapping[str, Any]) -> str | None:
    """The effort that the API's own field asks for."""
    if path == RESPONSES:
        reasoning = body.get("reasoning")
        return reasoning.get("effort") if isinstance(reasoning, dict) else None
    return body.get("reasoning_effort") if path == CHAT else None


def _effort(
    path: str, body: dict[str, Any], asked: str | None, default: str, caps: Mapping[str, int]
) -> tuple[str, int | None]:
    """The effort by its name, and the most thinking tokens that were asked for; the body is made to agree."""
    effort, field = asked or default, "reasoning.effort" if path == RESPONSES else "reasoning_effort"
    if effort not in EFFORT_NAMES:
        raise RequestError(str(unknown("effort", effort, EFFORT_NAMES)), param=field)
    budget = body.pop("thinking_token_budget", None)
    thinking = _thinking(path, body)
    if thinking is not None and thinking.type == "disabled":
        effort = "none"
    if (tokens := getattr(thinking, "budget_tokens", None)) is not None:
        budget = tokens
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < -1):
        raise RequestError(f"the thinking budget is {budget!r}; accepted: tokens", param="thinking_token_budget")
    effort = "none" if budget == 0 else effort
    _tell_template(path, body, effort, asked is not None or effort == "none")
    cap = caps.get(OURS.get(effort, effort)) if effort != "auto" and (asked or default != "normal") else None
    given = None if budget in (None, -1) else budget
    return effort, min((x for x in (cap, given) if x is not None), default=None)


def _thinking(path: str, body: dict[str, Any]) -> ThinkingOptions | None:
    """Anthropic's field, which vLLM knows at its own endpoint only."""
    given = body.get("thinking") if path == MESSAGES else body.pop("thinking", None)
    if given is None:
        return None
    try:
        return _THINKING.validate_python(given)
    except ValidationError as error:
        raise _under("thinking", error) from None


def _under(field: str, error: ValidationError) -> RequestError:
    """The refusal of a field that pydantic found fault with."""
    first: dict[str, Any] = dict(error.errors()[0])
    return from_validation_error([{**first, "loc": (field, *first["loc"])}], ChatRequest)


def _tell_template(path: str, body: dict[str, Any], effort: str, told: bool) -> None:
    """Say the effort in the field that reaches the chat template, by a name that vLLM takes."""
    if not told or path not in (CHAT, RESPONSES):
        return
    name = "medium" if effort == "auto" else OURS.get(effort, effort)
    if path == CHAT:
        body["reasoning_effort"] = name
    else:
        body["reasoning"] = {**(body.get("reasoning") or {}), "effort": name}


def _control(
    path: str,
    body: Mapping[str, Any],
    own: TerselyField,
    default: RequestControl,
    effort: str,
    cap: int | None,
    tag: str,
) -> RequestControl | None:
    """The control of a request; a raw completion is controlled only where it asks for it."""
    asked = (body.get("vllm_xargs") or {}).get(KEY)
    try:
        control = default if asked is None else read_control(asked)
        if own.policies is not None:
            control = replace(control, preset=None, policies={name: {} for name in own.policies})
        elif own.preset is not None:
            control = replace(control, preset=own.preset, policies=None)
        elif path == COMPLETIONS and asked is None:
            return None
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
        control = replace(
            control,
            effort=canonical_effort(effort),
            thinking=cap or control.thinking,
            shadow=own.shadow or control.shadow,
            answer_reserve=answer_reserve(limit, control.answer_reserve) if isinstance(limit, int) else None,
            question=_question(body),
            tag=tag,
        )
    except TerselyError as error:
        raise RequestError(str(error), param=KEY) from None
    return None if control.off or limit == 1 else control


def _question(body: Mapping[str, Any]) -> str:
    """The text of the last message, for policies that read it."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else ""


def _add_usage(body: dict[str, Any]) -> bool:
    """Have a stream end with its usage; whether the client had not asked for that."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or options.get("include_usage"):
        return False
    body["stream_options"] = {**options, "include_usage": True}
    return True


def default_control(preset: str | None, policies: list[str] | None, effort: str) -> RequestControl:
    """What holds where a request says nothing; raises OptionError, CapabilityError."""
    if effort not in EFFORT_NAMES:
        raise unknown("effort", effort, EFFORT_NAMES)
    named: dict[str, dict[str, Any]] | None = None if policies is None else {name: {} for name in policies}
    if named is not None and policies is not None and len(named) < len(policies):
        raise OptionError(f"policies given twice: {', '.join(policies)}; accepted: each at most once")
    return RequestControl(preset if named is None else None, named, effort)
