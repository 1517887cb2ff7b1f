"""The arms of a benchmark: ways of answering that are run, and counterfactual ones cut from the baseline's thinking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...controller.options import GenerationOptions
from ...controller.policies import POLICIES, PRESETS
from ...controller.tuned_config import TunedConfig
from ...errors import OptionError, unknown

BASELINE = "full"
NO_THINK = "no-think"
HELPER = "helper"
TUNED = "tuned"

ARMS: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {"preset": "off"},
    NO_THINK: {"preset": "off", "effort": "none"},
    "easy": {"preset": "off", "effort": "easy"},
    "hard": {"preset": "off", "effort": "hard"},
    "auto": {"preset": "off", "effort": "auto"},
    "auto-balanced": {"preset": "balanced", "effort": "auto"},
    **{name: {"preset": name} for name in PRESETS if name != "off"},
    **{name: {"policies": ("budget", name)} for name in POLICIES if name not in PRESETS},
}
"""Arm that is run -> what it changes in the options common to all arms: each preset, and each policy by itself."""

FIXED, CONFIDENCE, RANDOM, ORACLE = "fixed-budget", "confidence", "random-stop", "first-correct"
CUTS: Mapping[str, str] = {
    FIXED: "thinking ends at one budget for all questions, as dear on average as the judged arm",
    CONFIDENCE: "thinking ends once a trial answer is confident enough, as dear on average as the judged arm",
    RANDOM: "thinking ends after a random thought, as dear on average as the judged arm",
    ORACLE: "thinking ends at the first thought after which a trial answer is right: no controller knows which that is",
}
"""Arm cut from the baseline's thinking -> what it is; these and `no-think` stand beside every judged arm."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering all questions, run on the model, or on the helper."""

    name: str
    options: GenerationOptions

    @property
    def on_helper(self) -> bool:
        """Whether the helper answers, alone."""
        return self.name == HELPER


def make_arm(name: str, common: GenerationOptions, config: TunedConfig | None = None) -> Arm:
    """An arm by name; raises OptionError for an unknown one."""
    if name == TUNED:
        if config is None:
            raise OptionError(f"arm {TUNED!r} needs a configuration; name its file with --config")
        return Arm(name, replace(common, **config.options()))
    if name in CUTS:
        raise OptionError(f"arm {name!r} is cut from the baseline and always there; leave it out")
    if name == HELPER:
        return Arm(name, replace(common, preset="off"))
    if name not in ARMS:
        raise unknown("arm", name, (*ARMS, TUNED))
    return Arm(name, replace(common, **ARMS[name]))


def make_arms(
    names: str, common: GenerationOptions, *, helper: bool = False, config: TunedConfig | None = None
) -> list[Arm]:
    """Arms from a comma-separated list: the baseline, the one judged against it, then others.

    `no-think` is added if it is not there, and so is the helper if there is one. Raises OptionError if there are fewer
    than two, or one twice.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if len(wanted) < 2:
        raise OptionError(f"arms are {names!r}; accepted: two or more, the baseline first, as in {BASELINE},balanced")
    if wanted[0] != BASELINE:
        raise OptionError(f"the first arm is {wanted[0]!r}; accepted: {BASELINE!r}, with which the others are compared")
    if len(set(wanted)) < len(wanted):
        raise OptionError(f"arms are {names!r}; accepted: each arm at most once")
    if HELPER in wanted and not helper:
        raise OptionError(f"arm {HELPER!r} needs a helper model; name one with --helper")
    wanted += [name for name in (NO_THINK, *[HELPER] * helper) if name not in wanted]
    return [make_arm(name, common, config) for name in wanted]
