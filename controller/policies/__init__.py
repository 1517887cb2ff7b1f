"""Policies, presets and modifiers by name, with the add-ons that installed packages register as entry points.

The `research` folders are such add-ons; forward modifiers come from add-ons only (`tersely.forward_modifiers`).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from ...errors import OptionError, check_known
from ..types import ForwardModifier
from .base import BOUND, Policy

_BUILT_IN = {
    "auto_exit": "readiness:AutoExit",
    "budget": "exits:BudgetForcing",
    "certaindex": "exits:Certaindex",
    "concisehint": "hint:ConciseHint",
    "convergence": "exits:Convergence",
    "deer": "exits:Deer",
    "eat": "exits:EntropyStop",
    "escalate": "speculative:Escalate",
    "hint": "hint:BrevityHint",
    "readiness": "readiness:Readiness",
    "reconsider": "speculative:Reconsider",
    "repetition": "exits:Repetition",
    "sirius": "speculative:Sirius",
    "speculative": "speculative:SpeculativeThinking",
    "specreason": "speculative:SpecReason",
    "text_readiness": "readiness:TextReadiness",
    "trimr": "trimr:TrimR",
}
_BUILT_IN_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "off": {},
    "budget": {"budget": {}, "repetition": {}},
    "careful": {"budget": {}, "repetition": {}, "convergence": {"agree": 3}},
    "balanced": {"budget": {}, "repetition": {}, "auto_exit": {}},
    "certified": {"budget": {}, "repetition": {}, "readiness": {}},
    "fast": {"budget": {}, "repetition": {}, "hint": {}, "convergence": {"agree": 2}},
    "concise": {"budget": {}, "repetition": {}, "hint": {"limit": 1}},
    "concise-t": {"budget": {}, "repetition": {}, "hint": {"limit": 1, "learned": True}},
    "concisehint": {"budget": {}, "concisehint": {}},
    "concisehint-t": {"budget": {}, "concisehint": {"learned": True}},
    "speculative": {"budget": {}, "speculative": {}},
    "sirius": {"budget": {}, "sirius": {}},
    "specreason": {"budget": {}, "specreason": {}},
    "corrected": {"budget": {}, "sirius": {}, "auto_exit": {}},
    "cascade": {"budget": {}, "escalate": {}, "readiness": {}},
    "deer": {"budget": {}, "deer": {}},
    "certaindex": {"budget": {}, "certaindex": {}},
    "eat": {"budget": {}, "eat": {}},
    "trimr": {
        "budget": {},
        "trimr": {
            "window": 3,
            "floor": 0,
            "cues": ("wait", "but", "alternatively", "hmm"),
            "header": "**Final answer**",
            "grace": None,
        },
        "repetition": {"vocabulary": 0},
    },
}


@cache
def load_add_ons(group: str) -> Mapping[str, Any]:
    """Load what is registered under an entry-point group; what cannot be imported is left out."""
    loaded = {}
    for name, entry in find_entry_points(group).items():
        with suppress(ImportError, AttributeError):
            loaded[name] = entry.load()
    return loaded


def find_entry_points(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, without importing them; those whose module does not exist are skipped."""
    return {point.name: point for point in sorted(entry_points(group=group)) if _find_source(point.module) is not None}


def read_help(point: EntryPoint) -> str:
    """The first line of the docstring of what an entry point names, without importing it."""
    path = _find_source(point.module)
    if path is None:
        return point.value
    tree: Any = ast.parse(path.read_text(encoding="utf-8"))
    if point.attr:
        tree = next((node for node in tree.body if getattr(node, "name", None) == point.attr), tree)
    return (ast.get_docstring(tree) or point.value).splitlines()[0]


def _find_source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # its package is missing
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def list_policies() -> list[str]:
    """The names of all policies."""
    return sorted({*_BUILT_IN, *load_add_ons("tersely.policies")})


def get_presets() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Preset -> policy -> settings. The order of the policies is their precedence."""
    return {**_BUILT_IN_PRESETS, **load_add_ons("tersely.presets")}


def get_policy_class(name: str) -> type[Policy]:
    """The class of a policy by name; raises OptionError for an unknown one."""
    if name in _BUILT_IN:
        module, _, class_name = _BUILT_IN[name].partition(":")
        return cast("type[Policy]", getattr(importlib.import_module(f".{module}", __name__), class_name))
    check_known("policy", name, list_policies())
    return cast("type[Policy]", load_add_ons("tersely.policies")[name])


def make_policy(name: str, settings: Mapping[str, Any] | None = None) -> Policy:
    """Build a policy by name; raises OptionError for an unknown name or setting."""
    policy_class: Any = get_policy_class(name)
    accepted = [f.name for f in fields(policy_class) if f.metadata != BOUND]
    check_known(f"setting of policy {name!r}:", settings or {}, accepted)
    return cast(Policy, policy_class(**(settings or {})))


def load_policy(spec: str) -> Policy:
    """Build a policy from `file.py:Class` or `package.module:Class`.

    Raises OptionError (code `invalid_policy`) if the file, module or class does not exist, or is not a policy.
    """
    source, _, class_name = spec.rpartition(":")
    try:
        if source.endswith(".py"):
            found = importlib.util.spec_from_file_location(f"tersely_policy_{Path(source).stem}", source)
            if found is None or found.loader is None:
                raise ImportError(f"{source} is not a Python file")
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module  # dataclasses look their module up there
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        policy_class = getattr(module, class_name)
        policy = policy_class()
    except Exception as error:
        raise OptionError(
            f"policy {spec!r} cannot be loaded: {type(error).__name__}: {error}; "
            "accepted: file.py:Class or package.module:Class",
            code="invalid_policy",
        ) from error
    if not isinstance(policy, Policy):
        raise OptionError(
            f"{spec!r} is a {policy_class.__name__}, not a tersely.Policy; derive the class from it",
            code="invalid_policy",
        )
    return policy


def resolve_policy(policy: Policy | str) -> Policy:
    """A policy object as it is, or one by name or by `file.py:Class`."""
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise OptionError(
            f"policy {policy!r} is a {type(policy).__name__}; accepted: a name, file.py:Class or a tersely.Policy",
            code="invalid_policy",
        )
    return load_policy(policy) if ":" in policy else make_policy(policy)


def make_policies(
    preset: str | None = "balanced", policies: Sequence[Policy | str] | None = None
) -> tuple[Policy, ...]:
    """The policies of a preset, or those given (objects or names), which replace it."""
    if policies is not None:
        resolved = tuple(resolve_policy(policy) for policy in policies)
        names = [policy.name for policy in resolved]
        if len(set(names)) < len(names):
            raise OptionError(f"policies given twice: {', '.join(names)}; accepted: each at most once")
        return resolved
    presets, name = get_presets(), preset or "off"
    check_known("preset", name, presets)
    return tuple(make_policy(policy, settings) for policy, settings in presets[name].items())


def keep_budget(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """The policies, with one before them that keeps the thinking budget, unless it is there."""
    kept = any(policy.name == "budget" for policy in policies)
    return tuple(policies) if kept else (make_policy("budget"), *policies)


def resolve_modifier(modifier: ForwardModifier | str) -> ForwardModifier:
    """A modifier object as it is, or one by name."""
    if not isinstance(modifier, str):
        if not hasattr(modifier, "install"):
            raise OptionError(f"modifier {modifier!r} is a {type(modifier).__name__}; accepted: a name or a modifier")
        return modifier
    add_ons = load_add_ons("tersely.forward_modifiers")
    check_known("modifier", modifier, add_ons)
    return cast(ForwardModifier, add_ons[modifier]())
