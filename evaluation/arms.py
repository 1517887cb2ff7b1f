"""The arms of a benchmark: a name and the options it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..controller.errors import OptionError, unknown
from ..controller.session import Options

BASELINE = "full"

ARMS: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {"preset": "off"},
    "no-think": {"preset": "off", "effort": "none"},
    "easy": {"preset": "off", "effort": "easy"},
    "hard": {"preset": "off", "effort": "hard"},
    "budget": {"preset": "budget"},
    "careful": {"preset": "careful"},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
}
"""Arm -> what it changes in the options common to all arms."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering all questions."""

    name: str
    options: Options


def make_arm(name: str, common: Options) -> Arm:
    """An arm by name; raises OptionError for an unknown one."""
    if name not in ARMS:
        raise unknown("arm", name, ARMS)
    return Arm(name, replace(common, **ARMS[name]))


def make_arms(names: str, common: Options) -> list[Arm]:
    """Arms from a comma-separated list; the first is what the others are compared with.

    Raises OptionError if there are fewer than two, or one twice.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if len(wanted) < 2:
        raise OptionError(f"arms are {names!r}; accepted: two or more, the baseline first, as in {BASELINE},balanced")
    if len(set(wanted)) < len(wanted):
        raise OptionError(f"arms are {names!r}; accepted: each arm at most once")
    return [make_arm(name, common) for name in wanted]
