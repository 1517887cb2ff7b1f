"""From what a request asks for to how it is answered: names checked, effort and budget settled. Knows no engine."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..budgets import canonical_effort
from ..options import GenerationOptions
from ..policies import PRESETS, make_policies
from ..policies.base import Policy
from ..types import SamplingParams
from .effort_budgets import LEAST_THINKING, OURS, answer_reserve, effort_budgets
from .errors import RequestError, unknown_model
from .schemas import ParsedRequest
from .settings import ServerSettings

_SEEDS = 1 << 63
"""Seeds are taken modulo this: more no generator of random numbers knows."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the model behind a server can do: think, be told of tools in its prompt; context in tokens."""

    thinks: bool = True
    tools: bool = False
    context: int | None = None


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request that can be answered.

    options: with `max_new_tokens` at least 2, as an answer needs; `max_tokens` is what was asked for. effort: by the
    name that was asked for. note: why there will be less thinking than asked for, "" if it is not so. prompt: the field
    that the messages came by.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    options: GenerationOptions
    effort: str
    max_tokens: int
    n: int = 1
    stops: tuple[str, ...] = ()
    trace: bool = True
    note: str = ""
    prompt: str = "messages"


def resolve_request(asked: ParsedRequest, settings: ServerSettings, abilities: ModelInfo) -> ResolvedRequest:
    """Settle how a request is answered; raises RequestError."""
    if asked.model != settings.model:
        raise unknown_model(asked.model, [settings.model])
    _check(asked, settings, abilities)
    named, budget = _effort(asked), _budget(asked)
    limit = settings.limits.tokens if asked.max_tokens is None else asked.max_tokens
    reserve = answer_reserve(limit, settings.defaults.answer_reserve)
    effort = named or settings.defaults.effort
    note = ""
    if _capless(settings, effort, budget):
        effort = "none"
    elif budget is not None and budget < LEAST_THINKING:
        effort, note = "none", f"no thinking: it could not be closed within a budget of {budget} tokens"
    elif limit - reserve < LEAST_THINKING and effort != "none":
        effort, note = "none", f"no thinking: {limit} tokens in all leave no room for it beside the answer"
    seed = None if asked.seed is None else asked.seed % _SEEDS
    sampling = SamplingParams(asked.temperature, asked.top_p, asked.top_k, seed)
    plain = settings.tuned and named is None and budget is None
    options = replace(
        settings.defaults,
        effort=effort if effort == "auto" else canonical_effort(effort),
        strategy=settings.defaults.strategy if plain else effort_budgets(settings.caps, effort, budget),
        max_new_tokens=max(2, limit),
        answer_reserve=reserve,
        tools=asked.tools,
        sampling=_over(settings.defaults.sampling, sampling),
    )
    options = _acting(asked, settings, options, capped=budget is not None, named=named is not None)
    if not abilities.thinks:
        options = replace(options, effort="normal", preset="off", policies=None)
    return ResolvedRequest(
        asked.model,
        asked.messages,
        options,
        effort,
        limit,
        asked.n,
        asked.stops,
        asked.tersely.trace,
        note,
        asked.prompt,
    )


def _check(asked: ParsedRequest, settings: ServerSettings, abilities: ModelInfo) -> None:
    """Refuse what this server or its model cannot do."""
    limits = settings.limits
    if asked.max_tokens is not None and asked.max_tokens > limits.tokens:
        field = asked.max_tokens_field
        raise RequestError(f"{field} is {asked.max_tokens}; accepted: at most {limits.tokens}", param=field)
    if asked.n > limits.batch:
        raise RequestError(f"n is {asked.n}; accepted: at most {limits.batch}", param="n")
    if asked.tools and not abilities.tools:
        raise RequestError("this model's chat template knows no tools; leave them out", param="tools")
    if not abilities.thinks:
        own = asked.tersely
        wanted = [field for field, effort in asked.efforts.items() if effort != "none"]
        wanted += list(asked.budgets)
        wanted += [f"tersely.{name}" for name in ("preset", "policies") if getattr(own, name) is not None]
        wanted += ["tersely.shadow"] if own.shadow else []
        if wanted:
            raise RequestError(
                f"{wanted[0]}: this model does not think, so there is nothing to control; leave it out, or start the "
                "server with --think-prompt",
                param=wanted[0],
            )


def _effort(asked: ParsedRequest) -> str | None:
    """The effort that was asked for; raises RequestError where two fields disagree."""
    if len({OURS.get(effort, effort) for effort in asked.efforts.values()}) > 1:
        said = " and ".join(f"{field} says {effort!r}" for field, effort in asked.efforts.items())
        raise RequestError(f"{said}; give one of them", param=list(asked.efforts)[-1])
    return next(iter(asked.efforts.values()), None)


def _budget(asked: ParsedRequest) -> int | None:
    """The thinking tokens that were asked for as a number; raises RequestError where that cannot be kept."""
    if not asked.budgets:
        return None
    field = list(asked.budgets)[-1]
    if len(set(asked.budgets.values())) > 1:
        said = " and ".join(f"{name} is {number}" for name, number in asked.budgets.items())
        raise RequestError(f"{said}; give one of them", param=field)
    if asked.tersely.shadow:
        raise RequestError(
            f"{field}: shadow mode touches nothing, so no budget is kept; leave one of them out", param=field
        )
    return asked.budgets[field]


def _capless(settings: ServerSettings, effort: str, budget: int | None) -> bool:
    """Whether an effort comes to no thinking by its own budget or by the server's table."""
    cap = settings.caps.get(OURS.get(effort, effort), 1) if budget is None else budget
    return effort == "none" or cap == 0


def _over(base: SamplingParams, asked: SamplingParams) -> SamplingParams:
    """The sampling of a request laid over the server's."""
    given = {name: value for name in asked.__slots__ if (value := getattr(asked, name)) is not None}
    return replace(base, **given)


def _acting(
    asked: ParsedRequest, settings: ServerSettings, options: GenerationOptions, *, capped: bool, named: bool
) -> GenerationOptions:
    """The options with the policies that will act: a budget or effort that was asked for is kept by one of them."""
    own = asked.tersely
    chosen = own.preset is not None or own.policies is not None
    if own.preset is not None and own.policies is not None:
        raise RequestError("tersely.policies replaces tersely.preset; give one of them", param="tersely.policies")
    if chosen:
        given: tuple[Policy | str, ...] | None = None if own.policies is None else tuple(own.policies)
        options = replace(options, preset=own.preset, policies=given)
    options = replace(options, shadow=own.shadow or options.shadow)
    if settings.shadow_share and not (capped or own.shadow or asked.seed is not None):
        options = replace(options, shadow=random.random() < settings.shadow_share)
    if capped or (named and not chosen):
        options = replace(options, policies=_with_budget(options))
    return options


def _with_budget(options: GenerationOptions) -> tuple[Policy | str, ...] | None:
    """The policies of these options, the one that keeps budgets among them."""
    if options.policies is None and "budget" in PRESETS.get(options.preset or "off", ()):
        return None
    made = make_policies(options.preset, options.policies)
    return made if any(policy.name == "budget" for policy in made) else ("budget", *made)
