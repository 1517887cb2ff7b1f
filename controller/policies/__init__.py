"""The policies by name, and the presets: plain data."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ...errors import OptionError, unknown
from .base import Policy

POLICIES = {
    "budget": "budget:BudgetForcing",
    "convergence": "convergence:Convergence",
    "correct": "draft_review:Sirius",
    "escalate": "escalate:Escalate",
    "exit": "auto_exit:AutoExit",
    "grade": "draft_review:SpecReason",
    "hint": "hint:ConciseHint",
    "plan": "research.plan:PlanAndBudget",
    "readiness": "readiness:Readiness",
    "reconsider": "reconsider:Reconsider",
    "reflect": "speculative_thinking:SpeculativeThinking",
    "repetition": "repetition:Repetition",
    "shortcut": "research.shortcut:DepthShortcut",
    "steer": "research.steer:Steer",
    "trim": "trimr:TrimR",
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "off": {},
    "budget": {"budget": {}},
    "careful": {"budget": {}, "convergence": {"agree": 3}},
    "balanced": {"budget": {}, "exit": {}},
    "certified": {"budget": {}, "readiness": {}},
    "fast": {"budget": {}, "hint": {}, "convergence": {"agree": 2}},
    "concise": {"budget": {}, "hint": {"limit": 1}},
    "concise-t": {"budget": {}, "hint": {"limit": 1, "learnt": True}},
    "concisehint": {"budget": {}, "hint": {"earliest": 0, "limit": 64, "whole": True, "clauses": True}},
    "concisehint-t": {
        "budget": {},
        "hint": {"earliest": 0, "limit": 64, "whole": True, "clauses": True, "learnt": True},
    },
    "planned": {"budget": {}, "plan": {}},
    "speculative": {"budget": {}, "reflect": {}},
    "sirius": {"budget": {}, "correct": {}},
    "specreason": {"budget": {}, "grade": {}},
    "corrected": {"budget": {}, "correct": {}, "exit": {}},
    "cascade": {"budget": {}, "escalate": {}, "readiness": {}},
    "trimr": {
        "budget": {},
        "trim": {
            "window": 3,
            "floor": 0,
            "cues": ("wait", "but", "alternatively", "hmm"),
            "header": "**Final answer**",
            "grace": None,
        },
        "repetition": {},
    },
}
"""Preset -> policy -> settings; the order of the policies is their precedence. Those named after papers are theirs."""


def make_policy(name: str, settings: Mapping[str, Any] | None = None) -> Policy:
    """Build a policy by name; raises OptionError for an unknown name or setting."""
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    module, _, cls_name = POLICIES[name].partition(":")
    cls = getattr(import_module(f".{module}", __name__), cls_name)
    known = [f.name for f in fields(cls)]
    for key in settings or {}:
        if key not in known:
            raise unknown(f"setting of policy {name!r}:", key, known)
    return cast(Policy, cls(**(settings or {})))


def load_policy(spec: str) -> Policy:
    """Make a policy of your own from "path.py:ClassName" or "package.module:ClassName", with its default settings.

    Raises OptionError (code "invalid_policy") if it cannot be loaded or is not a policy.
    """
    source, _, class_name = spec.rpartition(":")
    if not source or not class_name:
        raise _invalid(spec, "accepted: path.py:ClassName or package.module:ClassName")
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else import_module(source)
        policy = getattr(module, class_name)()
    except Exception as error:  # user code may raise anything
        raise _invalid(spec, f"{type(error).__name__}: {error}") from error
    if missing := [name for name in ("name", "needs", "watch") if not hasattr(policy, name)]:
        raise _invalid(spec, f"it is not a policy, as it has no {' and no '.join(missing)}")
    return cast(Policy, policy)


def _load_file(path: Path) -> ModuleType:
    """Import a Python file that need not be in the import path."""
    name = f"tersely_policy_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # so for any path that ends in .py
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _invalid(spec: str, reason: str) -> OptionError:
    return OptionError(f"cannot load policy {spec!r}: {reason}", code="invalid_policy")


def make_policies(
    preset: str | None = "balanced", policies: Sequence[Policy | str] | None = None
) -> tuple[Policy, ...]:
    """The policies of a preset, or those given (objects or names), which then replace it."""
    if policies is not None:
        made = tuple(make_policy(p) if isinstance(p, str) else p for p in policies)
        names = [p.name for p in made]
        if len(set(names)) < len(names):
            raise OptionError(f"policies given twice: {', '.join(names)}; accepted: each at most once")
        return made
    name = preset or "off"
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return tuple(make_policy(n, s) for n, s in PRESETS[name].items())


def without_engine(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """The policies as they are used where there is no engine to bind to: those that can, do without."""
    return tuple(getattr(policy, "fallback", policy) for policy in policies)
