"""Takes in requests of all endpoints, waits for their answers, and cancels them when clients disconnect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ...errors import shorten
from ..options import SAMPLING_OPTIONS, make_options
from ..policies import keep_budget, make_policies
from ..policies.base import Policy
from ..trace import Decision
from .errors import CLIENT_LEFT, RequestError, unknown_model
from .metrics import exit_reason, request_span, result_attributes
from .replies import ChatReply, Event, PendingResponse, RowFinished
from .responses_api import ResponsesReply
from .rules import RequestRules, ServerSettings
from .schemas import CHANGING, UNCHANGING, RequestBody
from .settings import (
    MIN_THINKING,
    Billing,
    ModelInfo,
    ResolvedRequest,
    ServerLimits,
    answer_reserve,
    effort_budgets,
    limit_thinking,
    openai_effort,
)
from .worker import RequestWorker

T = TypeVar("T")
CONTROL = "x-tersely-control"  # a header of replies: what control a request is under
_OFF = Billing(preset="off", control="off")
_SETTLING = 1.0  # seconds that rows have to stop
_GREEDY = 1e-5  # below this temperature the likeliest token is taken: dividing by it would not give finite numbers
_BYTES = 3  # of a prompt's token, or more
_SEED_RANGE = 1 << 63  # seeds are taken modulo this, since random generators accept no larger ones


class CompletionService:
    """Answers requests with a worker."""

    def __init__(self, settings: ServerSettings, workers: Mapping[str, RequestWorker]) -> None:
        self.settings, self.workers = settings, workers

    async def respond(
        self, http: Request, body: RequestBody, make_reply: Callable[[ResolvedRequest], ChatReply | ResponsesReply]
    ) -> Response:
        """The response to a request; raises RequestError.

        A stream begins only with its first event, so that errors in the request become the HTTP status.
        """
        worker = self.workers.get(body.model)
        if worker is None:
            raise unknown_model(body.model, self.workers)
        config, key = self.settings.config, getattr(http.state, "key", "")
        request = resolve_request(body, config.rules(body.model, key), self.settings.limits, worker.model_info)
        request = replace(request, billing=config.billing(body.model, key, request.billing))
        request = await worker.admit(request, self.settings.special_tokens)
        reply, streams = make_reply(request), bool(body.stream)
        headers = {CONTROL: worker.model_info.describe_control(request.billing.control)}
        await release_body(http, body)
        with ExitStack() as stack:
            set_attributes = stack.enter_context(request_span(request.model))
            pending = worker.submit(request, streams)
            stack.callback(pending.cancel)
            stack.callback(asyncio.create_task(_watch_connection(http, pending)).cancel)
            http.state.settle = partial(_settle, http, pending)
            events = self._record(http, pending, await pending.next(), set_attributes)
            if streams:
                return _EventStream(reply.stream(events), stack.pop_all(), headers)
            async for _ in events:
                pass
        return JSONResponse(reply.to_json(sorted(pending.rows, key=lambda row: row.row)), headers=headers)

    async def _record(
        self, http: Request, pending: PendingResponse, first: Event, set_attributes: Callable[[Mapping[str, Any]], None]
    ) -> AsyncIterator[Event]:
        """The events; how they end is noted for the span, the log, and the metrics, as the status sent says less."""
        http.state.status = CLIENT_LEFT  # unless they end in another way
        try:
            async for event in pending.events(first):
                yield event
        except RequestError as refusal:
            http.state.status = refusal.status
            set_attributes({"error.type": str(refusal.status)})
            raise
        http.state.status = 200
        http.state.log = _describe(pending.request.billing, pending.rows)
        if self.settings.recorder is not None:
            self.settings.recorder.add(pending.request, pending.rows)
        set_attributes(result_attributes([row.result for row in pending.rows], pending.rows[0].budget))


async def release_body(http: Request, body: RequestBody) -> None:
    """Empty what was parsed of a request, which FastAPI would keep until the response is complete."""
    (await http.json()).clear()
    body.__dict__.clear()


def resolve_request(body: RequestBody, rules: RequestRules, limits: ServerLimits, model: ModelInfo) -> ResolvedRequest:
    """Decide all options of a request; raises RequestError."""
    tools, n = body.offered_tools(), getattr(body, "n", None) or 1
    _check_limits(body, n, bool(tools), rules, limits, model)
    _check_control(body, rules, model)
    messages, notes = body.to_messages(), list[Decision]()
    defaults = rules.rules.defaults
    named, budget = _only_value(body.efforts(), openai_effort), _only_value(body.budgets())
    if budget is None and named is None:
        budget = defaults.thinking_tokens if model.budgets else None
    most = rules.max_thinking if model.thinks else None
    if budget is not None and most is not None:
        budget = min(budget, most)
    limit = body.output_limit[1] or rules.default_tokens
    reserve = answer_reserve(limit, rules.options.answer_reserve)
    allowed = rules.fit_effort(named or rules.options.effort)
    if allowed != (named or rules.options.effort):
        notes.append(Decision("server", "tier", f"effort {allowed}: no higher one is allowed here", 0))
    effort, reason = _fit_effort(rules, allowed, budget, limit, reserve if model.policies else None)
    if reason:
        notes.append(Decision("server", "tier", reason, 0))
    has_budget = budget is not None or most is not None
    chosen, counted = _choose_policies(body, rules, has_budget, named is not None, notes)
    use_tuned_budgets = rules.tuned and named is None and budget is None
    options = make_options(
        rules.options,
        effort=effort,
        strategy=limit_thinking(rules.options.strategy, most)
        if use_tuned_budgets
        else effort_budgets(rules.caps, effort, most),
        max_new_tokens=max(2, limit),
        thinking_budget=budget if effort != "none" else None,
        answer_reserve=reserve,
        tools=tools,
        **_resolve_sampling(body),
        **chosen,
    )
    if not model.thinks:
        options = make_options(options, effort="normal", preset="off", policies=None)
    return ResolvedRequest(
        model=body.model,
        messages=messages,
        options=options,
        effort=effort,
        max_tokens=limit,
        n=n,
        stops=_list_stops(body),
        include_trace=body.own.trace,
        billing=replace(counted if model.thinks and model.policies else _OFF, effort=effort),
        notes=tuple(notes),
        prompt_field=body.prompt_field,
        asked_tokens=_ask_for_tokens(body, rules, messages, model.context),
        has_effort=any((named, defaults.effort, defaults.tuned, rules.rules.ceilings.effort)),
        passed={} if model.policies else body.passed_fields(),
    )


def _ask_for_tokens(
    body: RequestBody, rules: RequestRules, messages: Sequence[Mapping[str, Any]], context: int | None
) -> int | None:
    """The limit for a server that knows its own: the client's, or the configuration's if the prompt leaves as much."""
    given = body.output_limit[1]
    if given or not any((rules.rules.ceilings.max_tokens, rules.max_thinking, rules.rules.defaults.max_tokens)):
        return given
    if context is None:
        return rules.default_tokens
    prompt = len(str([*messages, *body.offered_tools()]).encode()) // _BYTES
    return max(1, min(rules.default_tokens, max(context - prompt, context // 8)))


def _list_stops(body: RequestBody) -> tuple[str, ...]:
    stop = getattr(body, "stop", None) or ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _resolve_sampling(body: RequestBody) -> dict[str, float]:
    """The sampling options that a request gives, within what engines take."""
    given = {name: getattr(body, name, None) for name in SAMPLING_OPTIONS}
    sampling = {name: value for name, value in given.items() if value is not None}
    if sampling.get("temperature", 1) < _GREEDY:
        sampling["temperature"] = 0
    if "seed" in sampling:
        sampling["seed"] %= _SEED_RANGE
    return sampling


def _check_limits(
    body: RequestBody, n: int, tools: bool, rules: RequestRules, limits: ServerLimits, model: ModelInfo
) -> None:
    """Refuse what is too much, and tools that the model does not know."""
    field, limit = body.output_limit
    if limit is not None and limit > rules.max_tokens and (model.policies or rules.rules.ceilings.max_tokens):
        raise RequestError(f"{field} is {limit}; accepted: at most {rules.max_tokens}", param=field)
    if n > limits.batch:
        raise RequestError(f"n is {n}; accepted: at most {limits.batch}", param="n")
    for name, value in body.passed_fields().items() if model.policies else ():
        if name in CHANGING and value and value not in UNCHANGING:
            raise RequestError(f"{name} is {shorten(value)}, which this model's server cannot do", param=name)
    if tools and not model.tools:
        raise RequestError("this model's chat template knows no tools; leave them out", param="tools")


def _check_control(body: RequestBody, rules: RequestRules, model: ModelInfo) -> None:
    """Refuse control that the model cannot be under, or that this client may not choose."""
    own, budgets = body.own, body.budgets()
    if not model.budgets and (rules.max_thinking or rules.max_tokens) < rules.max_tokens:
        message = "the ceiling of this key's thinking tokens cannot be kept by this model; choose another model"
        raise RequestError(message, 403, param="model", code="not_allowed")
    given = [f"tersely.{name}" for name in ("preset", "policies", "shadow") if getattr(own, name) is not None]
    if not rules.own_policies and given:
        message = f"{given[0]}: this key may not choose how it is controlled; leave it out"
        raise RequestError(message, 403, param=given[0], code="not_allowed")
    chosen = [field for field in given if field != "tersely.shadow" or own.shadow]
    if own.shadow and (budgets or rules.max_thinking is not None):
        message = "shadow mode changes nothing, so no thinking budget can be kept; leave it out"
        raise RequestError(message, param=list(budgets)[-1] if budgets else "tersely.shadow")
    refused = [] if model.policies else list(chosen)
    refused += [] if model.budgets else [field for field, tokens in budgets.items() if tokens]
    if refused:
        raise RequestError(
            f"{refused[0]}: this model's server only takes an effort, since its thinking cannot be ended from here; "
            "leave it out",
            param=refused[0],
        )
    if model.thinks:
        return
    fields = [*(field for field, effort in body.efforts().items() if effort != "none"), *budgets, *chosen]
    if fields:
        raise RequestError(
            f"{fields[0]}: this model does not think, so there is nothing to control; leave it out, or start the "
            "server with --think-prompt",
            param=fields[0],
        )


def _only_value(given: Mapping[str, T], key: Callable[[T], object] = lambda value: value) -> T | None:
    """What fields with one meaning say, None without any; raises RequestError if two disagree by `key`."""
    if len({key(value) for value in given.values()}) > 1:
        fields = " and ".join(f"{field} says {value!r}" for field, value in given.items())
        raise RequestError(f"{fields}; give one of them", param=list(given)[-1])
    return next(iter(given.values()), None)


def _fit_effort(
    rules: RequestRules, effort: str, budget: int | None, limit: int, reserve: int | None
) -> tuple[str, str]:
    """The effort that there is room for, and why it is less than requested."""
    cap = rules.caps.get(openai_effort(effort), 1) if budget is None else budget
    if effort == "none" or cap == 0:
        return "none", ""
    if budget is not None and budget < MIN_THINKING:
        return "none", f"no thinking: it could not be closed within a budget of {budget} tokens"
    if reserve is not None and limit - reserve < MIN_THINKING:
        return "none", f"no thinking: {limit} tokens in all leave no room for it in addition to the answer"
    return effort, ""


def _choose_policies(
    body: RequestBody, rules: RequestRules, has_budget: bool, has_effort: bool, notes: list[Decision]
) -> tuple[dict[str, Any], Billing]:
    """Preset, policies and shadow mode, and what they count as; a requested budget or effort is kept by a policy."""
    own, defaults = body.own, rules.options
    if not rules.enabled:
        notes.append(Decision("server", "off", "control is switched off", 0, acted=False))
        return {"preset": "off", "policies": None, "shadow": False}, _OFF
    chosen = own.preset is not None or own.policies is not None
    if own.preset is not None and own.policies is not None:
        raise RequestError("tersely.policies replaces tersely.preset; give one of them", param="tersely.policies")
    preset = own.preset if chosen else defaults.preset
    policies: Sequence[Policy | str] | None = own.policies if chosen else defaults.policies
    if not chosen and not rules.controls(body.name_conversation()):
        notes.append(Decision("server", "off", "not in the share of conversations under control", 0, acted=False))
        preset, policies = "off", None
    shadow = defaults.shadow if own.shadow is None else own.shadow
    if rules.rules.shadow_share and own.shadow is None and not has_budget and body.seed is None:
        shadow = random.random() < rules.rules.shadow_share
    resolved = make_policies(preset, policies)
    named = preset or "off" if policies is None else "policies"
    counted = Billing(preset=named, control="off" if not resolved else "shadow" if shadow else "on")
    if has_budget or (has_effort and not chosen):
        policies = keep_budget(resolved)
    return {"preset": preset, "policies": policies, "shadow": shadow}, counted


class _EventStream(StreamingResponse):
    """Server-sent events; closes `stack` when they end, however that is."""

    def __init__(self, lines: AsyncIterator[str], stack: ExitStack, headers: Mapping[str, str]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self.stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events; see ASGI."""
        with self.stack:
            await super().__call__(scope, receive, send)


def _describe(billing: Billing, rows: Sequence[RowFinished]) -> dict[str, Any]:
    """What the log says of a request."""
    results = [row.result for row in rows]
    fields = {
        **{name: getattr(billing, name) for name in ("model", "effort", "preset", "control")},
        "tier": results[0].tier,
        "prompt": results[0].usage.prompt,
        **{kind: sum(getattr(one.usage, kind) for one in results) for kind in ("thinking", "answer", "overhead")},
        "exit": exit_reason(results[0]),
    }
    if billing.input or billing.output:
        fields["cost"] = round(sum(billing.cost(result.usage) for result in results), 6)
    return fields


async def _settle(http: Request, pending: PendingResponse) -> None:
    """Log what was spent on a request that ended early, which its rows report once they have stopped."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_SETTLING):
            while len(pending.rows) < pending.request.n:
                with suppress(RequestError):
                    await pending.next()
    if pending.rows:
        http.state.log = _describe(pending.request.billing, pending.rows)


async def _watch_connection(http: Request, pending: PendingResponse) -> None:
    """End the request once its client disconnects."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    pending.send(RequestError("the client disconnected", CLIENT_LEFT))
