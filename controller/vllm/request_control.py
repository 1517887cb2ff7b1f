"""How a request asks for control: plain settings that travel to vLLM's workers, checked before it is admitted.

Offline they are `SamplingParams.extra_args["tersely"]`, over HTTP `vllm_xargs={"tersely": ...}`: an object, its JSON
text (vLLM rejects nested values), or the name of a preset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, fields, replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ...errors import CapabilityError, OptionError, unknown
from ...validation import format_validation_error
from ..budgets import Budget, canonical_effort, fit_budget
from ..policies import make_policies, make_policy
from ..policies.base import Policy
from ..types import Capability

KEY = "tersely"
AVAILABLE = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.VERIFIER})
"""What policies may require inside vLLM, which keeps every token: nothing can be tried or taken back."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class RequestControl:
    """How one request is controlled; see also `GenerationOptions`. `read_control` builds it from settings.

    Raises CapabilityError for a policy that needs what vLLM does not offer.
    """

    preset: str | None = None
    policies: dict[str, dict[str, Any]] | None = None  # name -> settings, in the order of their precedence
    effort: str = "normal"  # sets only the budget, as the prompt is the caller's
    thinking: Annotated[int | None, Field(ge=1)] = None  # most thinking tokens, below what the effort allows
    answer_reserve: int | None = None
    shadow: bool = False
    question: str = ""  # for policies that read it
    tag: str = ""  # identifies the trace
    driver: str = field(default="", repr=False)  # identifies a `RequestController` of this process

    def __post_init__(self) -> None:
        canonical_effort(self.effort)
        for policy in self.make_policies():
            if missing := sorted(policy.requires - AVAILABLE):
                raise CapabilityError(
                    f"policy {policy.name!r} needs {', '.join(missing)}, which vLLM does not offer inside; "
                    "leave it out, or control vLLM from outside (AsyncLLM, or its server as an endpoint)"
                )

    def make_policies(self) -> tuple[Policy, ...]:
        """The policies themselves."""
        if self.policies is not None:
            return tuple(make_policy(name, settings) for name, settings in self.policies.items())
        return make_policies(self.preset or "balanced")

    def make_budget(self, tier: str, max_tokens: int) -> Budget:
        """The budget of a tier within `max_tokens`; raises OptionError if it leaves no room for an answer."""
        budget = fit_budget(tier, max_tokens, self.answer_reserve)
        return budget if self.thinking is None else replace(budget, thinking=min(budget.thinking, self.thinking))

    @property
    def disabled(self) -> bool:
        """Whether there is nothing to control."""
        return not self.driver and (canonical_effort(self.effort) == "none" or not self.make_policies())

    def as_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


_SETTINGS = tuple(f.name for f in fields(RequestControl) if f.name != "driver")


def make_control(**settings: Any) -> RequestControl:
    """Build a control from settings; raises OptionError or CapabilityError."""
    try:
        return RequestControl(**settings)
    except ValidationError as error:
        raise OptionError(f"{KEY!r}: {format_validation_error(error)}") from None


def read_control(settings: Any) -> RequestControl:
    """Read an object, its JSON text, or the name of a preset; raises OptionError or CapabilityError."""
    if isinstance(settings, str) and settings.lstrip()[:1] == "{":
        try:
            settings = json.loads(settings)
        except ValueError as error:
            raise OptionError(
                f"{KEY!r} is not valid JSON: {error}; accepted: an object, or the name of a preset"
            ) from None
        if "driver" in settings:  # which belongs to this process, and never comes as text
            raise unknown(f"setting of {KEY!r}:", "driver", _SETTINGS)
    if isinstance(settings, str):
        settings = {"preset": settings}
    if not isinstance(settings, dict):
        raise OptionError(f"{KEY!r} is {settings!r}; accepted: an object, its JSON text, or the name of a preset")
    for key in settings:
        if key not in (*_SETTINGS, "driver"):
            raise unknown(f"setting of {KEY!r}:", key, _SETTINGS)
    if isinstance(policies := settings.get("policies"), list):
        settings = {**settings, "policies": {name: {} for name in policies}}
    return make_control(**settings)


def parse_control(extra_args: Mapping[str, Any] | None, default: RequestControl | None) -> RequestControl | None:
    """The control of a request with these arguments, or None. Raises as `read_control`."""
    settings = (extra_args or {}).get(KEY)
    control = default if settings is None else read_control(settings)
    return None if control is None or control.disabled else control
