"""How to answer: the options that all faces share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .budgets import Strategy
from .policies.base import Policy
from .types import SamplingParams

DEFAULT_MAX_NEW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to answer: see `faces.generate` for the meaning of each; signals: have the engine report them.

    probes: a folder of `tersely calibrate`; None takes what is released for the model. record: a folder to keep what
    probes learn from. tools: as OpenAI describes them, told to a chat template that knows tools.
    """

    effort: str = "normal"
    preset: str | None = "balanced"
    policies: tuple[Policy | str, ...] | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    answer_reserve: int | None = None
    strategy: Strategy = "tiers"
    shadow: bool = False
    signals: bool = False
    probes: str | None = None
    record: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)


def with_seed(options: GenerationOptions, seed: int | None) -> GenerationOptions:
    """The same options with another seed."""
    return replace(options, sampling=replace(options.sampling, seed=seed))
