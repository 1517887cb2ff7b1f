"""What a framework's model is given, at its making and with each call: checked, and made into sessions and options."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from ....errors import unknown
from ...api import resolve_helper, resolve_verifier
from ...budgets import canonical_effort
from ...options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from ...session import Session
from ...types import SamplingParams
from .runner import shared_engine

CALL_OPTIONS = (
    "effort reasoning_effort preset policies max_tokens temperature top_p top_k seed probes answer_reserve strategy"
).split()
"""What may be given with a call, whatever the framework."""


def check_arguments(given: Collection[str], cls: Any, base: Any, passed_over: Collection[str] = ()) -> None:
    """Raise OptionError for a name that the model `cls` has no field of; those of its framework's `base` go unsaid."""
    known = set(cls.model_fields)
    for name in given:
        if name not in known and name not in passed_over:
            raise unknown("argument", name, sorted(known - set(base.model_fields)))


def check_settings(given: Collection[str], accepted: Collection[str]) -> None:
    """Raise OptionError for a setting of a call that is not known."""
    for name in given:
        if name not in accepted:
            raise unknown("setting of a call", name, accepted)


def open_session(engine: Any, model: Any) -> Session:
    """A session on an engine, or on the one of a name, with what a framework's model says besides."""
    return Session(
        shared_engine(os.fspath(engine)) if isinstance(engine, (str, os.PathLike)) else engine,
        model.markers,
        model.think_prompt,
        verifier=resolve_verifier(model.verifier),
        helper=resolve_helper(model.helper),
    )


def build_options(settings: Mapping[str, Any], after_tool: bool, tools: tuple[Any, ...] = ()) -> GenerationOptions:
    """The options of a call; settings: all of `CALL_OPTIONS`, of which `reasoning_effort` may be left out."""
    effort = settings.get("reasoning_effort") or settings["effort"]
    if after_tool and canonical_effort(effort) == "auto":
        effort = "normal"  # `auto` judges questions; what a tool wrote must not raise the budget
    policies, limit = settings["policies"], settings["max_tokens"]
    return GenerationOptions(
        effort=effort,
        preset=settings["preset"],
        policies=None if policies is None else tuple(policies),
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS if limit is None else limit,
        answer_reserve=settings["answer_reserve"],
        strategy=settings["strategy"],
        probes=settings["probes"],
        sampling=SamplingParams(*(settings[name] for name in ("temperature", "top_p", "top_k", "seed"))),
        tools=tools,
    )
