"""What a request says about its control: plain settings that travel to vLLM's workers, checked before it is admitted.

Offline they are `SamplingParams.extra_args["tersely"]`, over HTTP `vllm_xargs={"tersely": ...}`: an object, its JSON
text (vLLM lets no nested values through), or the name of a preset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...errors import CapabilityError, OptionError, unknown
from ..budgets import Budget, canonical_effort, fit_budget
from ..policies import PRESETS, make_policy
from ..policies.base import Policy

KEY = "tersely"
GIVES = frozenset({"signals", "hidden", "verifier"})
"""What policies may need here: vLLM keeps what it has put out, so nothing can be tried or taken back."""


@dataclass(frozen=True, slots=True)
class RequestControl:
    """How one request is controlled.

    preset, policies (name -> settings, in the order of their precedence), effort, answer_reserve, shadow: as in
    `faces.generate`; an effort sets the budget only, the prompt is the caller's. thinking: most thinking tokens, below
    what the effort allows. question: what was asked, for policies that read it. tag: by which traces are told apart.
    driver: of one in this process. Raises OptionError, CapabilityError for what cannot be done inside vLLM.
    """

    preset: str | None = None
    policies: Mapping[str, Mapping[str, Any]] | None = None
    effort: str = "normal"
    thinking: int | None = None
    answer_reserve: int | None = None
    shadow: bool = False
    question: str = ""
    tag: str = ""
    driver: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                accepted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
                raise OptionError(f"{name} of {KEY!r} is {value!r}; accepted: {accepted}")
        canonical_effort(self.effort)
        if self.thinking is not None and self.thinking < 1:
            raise OptionError(f"thinking of {KEY!r} is {self.thinking}; accepted: 1 or more tokens")
        for policy in self.made():
            if lacking := sorted(policy.needs - GIVES):
                raise CapabilityError(
                    f"policy {policy.name!r} needs {', '.join(lacking)}, which cannot be had inside vLLM; leave "
                    "it out, or let tersely drive vLLM from outside (AsyncLLM, or its server as an endpoint)"
                )

    def made(self) -> tuple[Policy, ...]:
        """The policies themselves."""
        if self.policies is not None:
            return tuple(make_policy(name, settings) for name, settings in self.policies.items())
        name = self.preset or "balanced"
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        return tuple(make_policy(policy, settings) for policy, settings in PRESETS[name].items())

    def budget(self, tier: str, max_tokens: int) -> Budget:
        """What a tier allows within so many output tokens; raises OptionError if they leave no room."""
        budget = fit_budget(tier, max_tokens, self.answer_reserve)
        return budget if self.thinking is None else replace(budget, thinking=min(budget.thinking, self.thinking))

    @property
    def off(self) -> bool:
        """Whether nothing is to be controlled."""
        return not self.driver and (canonical_effort(self.effort) == "none" or not self.made())

    def as_dict(self) -> dict[str, Any]:
        """What travels: all that is not as it is by default."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}


_KINDS: Mapping[str, tuple[type, ...]] = {
    "preset": (str, type(None)),
    "policies": (dict, type(None)),
    "effort": (str,),
    "thinking": (int, type(None)),
    "answer_reserve": (int, type(None)),
    "shadow": (bool,),
    "question": (str,),
    "tag": (str,),
    "driver": (str,),
}
_SETTINGS = tuple(name for name in _KINDS if name != "driver")


def read_control(given: Any) -> RequestControl:
    """The control that settings describe: an object, its JSON text, or the name of a preset; raises OptionError."""
    if isinstance(given, str) and given.lstrip()[:1] == "{":
        try:
            given = json.loads(given)
        except ValueError as error:
            raise OptionError(f"{KEY!r} is no JSON: {error}; accepted: an object, or the name of a preset") from None
        if "driver" in given:  # which is of this process, and never comes as text
            raise unknown(f"setting of {KEY!r}:", "driver", _SETTINGS)
    if isinstance(given, str):
        return RequestControl(preset=given)
    if not isinstance(given, dict):
        raise OptionError(f"{KEY!r} is {given!r}; accepted: an object, its JSON text, or the name of a preset")
    for key, value in given.items():
        if key not in _KINDS:
            raise unknown(f"setting of {KEY!r}:", key, _SETTINGS)
        if key == "policies" and isinstance(value, list):
            given = {**given, key: {name: {} for name in value}}
    return RequestControl(**given)


def parse_control(extra_args: Mapping[str, Any] | None, default: RequestControl | None) -> RequestControl | None:
    """The control of a request with such arguments; None where there is to be none. Raises as `read_control`."""
    given = (extra_args or {}).get(KEY)
    control = default if given is None else read_control(given)
    return None if control is None or control.off else control
