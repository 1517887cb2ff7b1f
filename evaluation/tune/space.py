"""What is searched: ways of answering, as configurations with a readable name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ...controller.tuned_config import TunedConfig
from ...errors import OptionError, unknown

_KEYS = ("effort", "policies", "strategy")
_AGREE = {"convergence": {"agree": 2}}
_SURE = {"convergence": {"agree": 3}}
_FREE: tuple[Mapping[str, Mapping[str, Any]], ...] = (
    {},
    _AGREE,
    _SURE,
    {"hint": {}},
    {"hint": {}, **_AGREE},
    {"hint": {}, **_SURE},
    {"trim": {}, "repetition": {}},
)
_LEARNT: tuple[Mapping[str, Mapping[str, Any]], ...] = (
    {"readiness": {}},
    {"readiness": {}, **_AGREE},
    {"readiness": {}, "reconsider": {}},
    {"readiness": {}, "hint": {}},
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way of answering and what to call it."""

    name: str
    config: TunedConfig


def named_candidate(config: TunedConfig) -> Candidate:
    """A candidate that is called what it does."""
    parts = [config.effort] if isinstance(config.strategy, str) else [config.effort, json.dumps(config.strategy)]
    if isinstance(config.strategy, str) and config.strategy != "tiers":
        parts.append(config.strategy)
    for policy, settings in config.policies.items():
        if policy != "budget":
            said = ", ".join(f"{key}={value}" for key, value in settings.items())
            parts.append(f"{policy}({said})" if said else policy)
    return Candidate(" + ".join(parts), config)


def default_space(learnt: bool) -> list[Candidate]:
    """Efforts and sets of policies worth trying on any model; learnt: there are probes for this one."""
    sets = [*_FREE, *(_LEARNT if learnt else ())]
    configs = [TunedConfig("normal", {"budget": {}, **policies}) for policies in sets]
    configs.append(TunedConfig("easy", {"budget": {}}))
    if learnt:
        configs += [TunedConfig("auto", {"budget": {}, **policies}) for policies in ({}, _AGREE)]
        configs.append(TunedConfig("auto", {"budget": {}}, "diffadapt"))
    return [named_candidate(config) for config in configs]


def read_space(path: Path) -> list[Candidate]:
    """Every combination of a JSON file {effort: [...], policies: [{name: settings}, ...], strategy: [...]}.

    Each key may be left out. Raises OptionError for another file, an unknown name, or none to try.
    """
    try:
        axes = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(axes, dict) or not all(isinstance(values, list) for values in axes.values()):
        raise OptionError(f"{path} is no space; accepted: an object whose values are lists, of {', '.join(_KEYS)}")
    for key in axes:
        if key not in _KEYS:
            raise unknown(f"key in {path}:", key, _KEYS)
    try:
        made = [
            named_candidate(TunedConfig(**dict(zip(axes, values, strict=True)))) for values in product(*axes.values())
        ]
    except (TypeError, AttributeError) as error:
        raise OptionError(f"{path} is no space: {error}") from None
    return unique(made)


def unique(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each name once; raises OptionError if there is none."""
    if not candidates:
        raise OptionError("there is nothing to try; accepted: a space with at least one way of answering")
    return list({candidate.name: candidate for candidate in candidates}.values())
