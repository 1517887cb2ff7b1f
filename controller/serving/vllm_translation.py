"""Translates requests of OpenAI's and Anthropic's clients into what vLLM's server understands, with their control."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import TerselyError, shorten
from ..budgets import UNLIMITED, canonical_effort
from ..vllm.request_control import KEY, RequestControl, make_control, read_control
from .errors import RequestError, from_validation_error
from .rules import RequestRules
from .schemas import Effort, TerselyField, ThinkingOptions
from .settings import Billing, answer_reserve, openai_effort
from .vllm_limits import GRAMMAR_FIELDS

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages")
CHAT, RESPONSES, COMPLETIONS, MESSAGES = PATHS
_LIMITS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    RESPONSES: ("max_output_tokens",),
    COMPLETIONS: ("max_tokens",),
    MESSAGES: ("max_tokens",),
}
"""The fields that limit the output, those that win first."""
HELD: Mapping[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),  # which asks no logits processor
    "add_generation_prompt": (True,),  # else nothing says where the thinking begins
    "continue_final_message": (False,),
    "chat_template": (),
    "prompt_embeds": (),
    "include_reasoning": (True,),  # else a grammar holds within the thinking as well
    "ignore_eos": (False,),  # after its answer, a model goes on thinking
    "min_tokens": (0,),
}
"""What fields may be where a budget must hold, besides null; other fields cannot stop a token that is forced."""
_MASKS: Mapping[str, tuple[Any, ...]] = {"bad_words": ([],), "allowed_token_ids": ()}
"""The same next to a grammar: what is forbidden then may be so by the grammar, and is not forced."""
_CONVERSATION = ("prompt_cache_key", "safety_identifier", "user")


class _EffortField(BaseModel):
    effort: Effort | None = None


class ControlFields(BaseModel):
    """The fields of a request that say how much to think; the others are vLLM's own matter."""

    model_config = ConfigDict(strict=True)

    tersely: TerselyField | None = None
    reasoning_effort: Effort | None = None
    reasoning: _EffortField | None = None
    thinking: ThinkingOptions | None = None  # which vLLM knows at Anthropic's endpoint only
    output_config: _EffortField | None = None  # Anthropic's
    thinking_token_budget: Annotated[int, Field(ge=-1)] | None = None


@dataclass(frozen=True, slots=True)
class VllmRequestMapping:
    """A request as vLLM's server receives it."""

    body: dict[str, Any]
    effort: str
    control: RequestControl | None  # None if nothing is controlled
    budget: int | None = None  # most thinking tokens, as far as they are known before the prompt is
    include_trace: bool = True  # whether the reply lists the decisions
    usage_added: bool = False  # a stream ends with the usage for the metrics only; the client did not ask for it

    @property
    def counted(self) -> Billing:
        """What the request is counted under."""
        control, preset, mode = self.control, "off", "off"
        if control is not None and any(policy.name != "budget" for policy in control.make_policies()):
            preset = control.preset or "balanced" if control.policies is None else "policies"
            mode = "shadow" if control.shadow else "on"
        return Billing(effort=self.effort, preset=preset, control=mode)

    @property
    def tier(self) -> str:
        """The tier of the effort; none where nothing is controlled."""
        return "none" if self.control is None else canonical_effort(self.effort)


def translate(path: str, given: Mapping[str, Any], rules: RequestRules, tag: str) -> VllmRequestMapping:
    """Translate a request; raises RequestError for errors in the fields that are ours, and for what may not be asked.

    `tag` identifies the request's trace.
    """
    try:
        fields = ControlFields.model_validate(given)
    except ValidationError as error:
        raise from_validation_error(error.errors(), ControlFields) from None
    dropped = (KEY, "thinking_token_budget") if path == MESSAGES else (KEY, "thinking_token_budget", "thinking")
    body = {name: value for name, value in given.items() if name not in dropped}
    own = fields.tersely or TerselyField()
    limit = _check_allowed(path, body, own, rules)
    effort, cap = _effort_and_cap(path, body, fields, rules)
    asked = fields.thinking_token_budget or (fields.thinking and fields.thinking.budget_tokens) or 0
    if rules.max_thinking is not None or (rules.enabled and asked > 0):
        _check_held(body)
    if own.shadow and asked > 0:
        message = "shadow mode changes nothing, so a budget in tokens would not be kept; leave one of them out"
        raise RequestError(message, param="tersely.shadow")
    control, budget = None, None
    if rules.enabled:
        control, budget = _control(path, body, own, rules, effort, cap, limit, asked > 0)
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
    return VllmRequestMapping(body, effort, control, budget, own.trace, usage_added)


def _check_held(body: Mapping[str, Any]) -> None:
    """Refuse what would take a request out of control; raises RequestError."""
    constrained = any(body.get(field) for field in GRAMMAR_FIELDS)
    for name, accepted in {**HELD, **(_MASKS if constrained else {})}.items():
        if (value := body.get(name)) is not None and value not in accepted:
            reason = "does not go with a grammar or tools" if name in _MASKS else "is not accepted"
            message = f"{name} {reason} where the thinking has a ceiling or a budget in tokens; leave it out"
            raise RequestError(message, param=name)
    last = items[-1] if isinstance(items := body.get("input"), list) and items else None
    if not isinstance(last, dict) or last.get("type", "message") not in ("message", "reasoning"):
        return
    if last.get("status") in ("in_progress", "incomplete"):
        message = "the last item is not complete, and a ceiling or a budget in tokens needs a turn of its own"
        raise RequestError(message, param="input")


def _effort_and_cap(
    path: str, body: dict[str, Any], fields: ControlFields, rules: RequestRules
) -> tuple[str, int | None]:
    """The effort, and the thinking tokens of the request, else of the effort; changes the body accordingly."""
    default = rules.options.effort
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
    template = body.get("chat_template_kwargs")
    if isinstance(template, dict) and template.get("enable_thinking") is False:
        if canonical_effort(named or "none") != "none":
            message = f"the effort is {named!r}, but chat_template_kwargs.enable_thinking false; accepted: one of them"
            raise RequestError(message, param="chat_template_kwargs.enable_thinking")
        effort = "none"
    if budget is None and named is None:
        budget = rules.rules.defaults.thinking_tokens
    allowed = rules.fit_effort("none" if budget == 0 else effort)
    lowered, effort = allowed != effort, allowed
    if named is not None or lowered or effort == "none":
        name = "medium" if effort == "auto" else openai_effort(effort)  # for the chat template
        if path == CHAT:
            body["reasoning_effort"] = name
        elif path == RESPONSES:
            body["reasoning"] = {**(body.get("reasoning") or {}), "effort": name}
    cap = rules.caps.get(openai_effort(effort)) if effort != "auto" and (named or default != "normal") else None
    return effort, UNLIMITED if budget == -1 else budget or cap


def _check_allowed(path: str, body: dict[str, Any], own: TerselyField, rules: RequestRules) -> int | None:
    """Refuse what this client may not ask for; returns the limit of the output, if known. Raises RequestError."""
    chosen = [f"tersely.{name}" for name in ("preset", "policies", "shadow") if getattr(own, name) is not None]
    chosen += [f"vllm_xargs.{KEY}"] if KEY in (body.get("vllm_xargs") or {}) else []
    if chosen and not rules.own_policies:
        message = f"{chosen[0]}: this key may not choose how it is controlled; leave it out"
        raise RequestError(message, 403, param=chosen[0], code="not_allowed")
    if own.shadow and rules.max_thinking is not None:
        message = "shadow mode changes nothing, so the ceiling of thinking tokens forbids it; leave it out"
        raise RequestError(message, param="tersely.shadow")
    most, usual = rules.rules.ceilings.max_tokens, rules.rules.defaults.max_tokens
    given = {name: body[name] for name in _LIMITS[path] if body.get(name) is not None}
    for name, limit in given.items():
        if not isinstance(limit, int):  # which vLLM may read as one
            raise RequestError(f"{name} is {shorten(limit)}; accepted: a whole number", param=name)
        if most is not None and limit > most:
            raise RequestError(f"{name} is {limit}; accepted: at most {most}", param=name)
    if not given and (most or usual):
        given[_LIMITS[path][-1]] = body[_LIMITS[path][-1]] = min(usual or most or 0, most or usual or 0)
    return next(iter(given.values()), None)


def make_default_control(rules: RequestRules) -> RequestControl:
    """The control of requests that say nothing; raises CapabilityError for what works in no vLLM."""
    options = rules.options
    return make_control(
        preset=options.preset if options.policies is None else None,
        policies=options.policies,
        effort=options.effort,
        answer_reserve=options.answer_reserve,
    )


def _control(
    path: str,
    body: Mapping[str, Any],
    own: TerselyField,
    rules: RequestRules,
    effort: str,
    cap: int | None,
    limit: int | None,
    has_budget: bool,
) -> tuple[RequestControl | None, int | None]:
    """The control and the budget; raw completions are controlled only if they ask for it, or there is a ceiling."""
    given = (body.get("vllm_xargs") or {}).get(KEY)
    raw = path == COMPLETIONS and given is None
    try:
        control = make_default_control(rules) if given is None else read_control(given)
        if own.policies is not None:
            control = replace(control, preset=None, policies={name: {} for name in own.policies})
        elif own.preset is not None:
            control = replace(control, preset=own.preset, policies=None)
        elif raw and rules.max_thinking is None:
            return None, None
        elif given is None and (raw or not rules.controls(_first_text(body))):
            control = replace(control, preset="off", policies=None)
        tier = canonical_effort(effort)
        if unthinking := tier == "none":  # what the template has opened all the same is closed
            control, tier, cap = replace(control, preset=None, policies={"budget": {}}), "easy", 1
        shadow = own.shadow
        if shadow is None:  # a budget of its own must be kept, and a seed must give the same again
            share = 0.0 if body.get("seed") is not None else rules.rules.shadow_share or 0.0
            shadow = not has_budget and (control.shadow or random.random() < share)
        control = replace(
            control,
            effort=tier,
            thinking_budget=cap or control.thinking_budget,
            shadow=shadow,
            held=control.held or has_budget,
            answer_reserve=None if limit is None else answer_reserve(limit, control.answer_reserve),
            question=_last_question(body),
        )
        if (most := rules.max_thinking) is not None:
            most = min(control.thinking_budget or most, most)
            control = replace(control, thinking_budget=most, shadow=False, held=True)
        if control.disabled or (limit is not None and limit <= 1):
            return None, None
        budget = 0 if unthinking else control.thinking_budget
        if limit is not None and tier != "auto" and budget != 0:
            budget = control.make_budget(tier, limit).thinking
        return control, None if budget == UNLIMITED else budget
    except TerselyError as error:
        raise RequestError(str(error), param=KEY) from None


def _first_text(body: Mapping[str, Any]) -> str:
    """How a conversation begins, or the client's name for it."""
    if given := next((body[name] for name in _CONVERSATION if isinstance(body.get(name), str)), None):
        return str(given)
    messages = body.get("messages") or body.get("input")
    if not isinstance(messages, list):
        return str(messages)
    return next((str(m.get("content")) for m in messages if isinstance(m, dict) and m.get("role") != "system"), "")


def _last_question(body: Mapping[str, Any]) -> str:
    """The text of the last message, for policies that read it."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else ""
