"""How a request asks for control: plain settings that travel to vLLM's workers, checked before it is admitted.

Offline they are `SamplingParams.extra_args["tersely"]`, over HTTP `vllm_xargs={"tersely": ...}`: an object, its JSON
text (vLLM rejects nested values), or the name of a preset. What comes as text comes from a client, who may set less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ...errors import CapabilityError, OptionError, shorten, unknown
from ...validation import format_validation_error
from ..budgets import Budget, canonical_effort, fit_budget
from ..policies import keep_budget, list_policies, make_policies, make_policy
from ..policies.base import BOUND, Policy
from ..types import Capability

KEY = "tersely"
AVAILABLE = frozenset(
    {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.VERIFIER, Capability.TRIALS, Capability.LOGPROBS}
)
"""What policies may require inside vLLM, which keeps every token: nothing can be taken back. Probabilities are known of
trials only, and these need an endpoint, see `trial_endpoint`."""


_TOKENS = (1, 1 << 16)
CLIENT_SETTINGS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "budget": {"slack": (0, 1 << 12)},
    "convergence": {"agree": (1, 1000), "stride": _TOKENS, "growth": _TOKENS},
    "auto_exit": {"agree": (1, 1000)},
    "hint": {"alpha": _TOKENS, "beta": (0.0, 100.0), "longest": _TOKENS, "earliest": (0, 1 << 16), "limit": (0, 1000)},
    "readiness": {"threshold": (0.0, 1.0)},
    "repetition": {"tokens": (30, 1000), "counting": _TOKENS, "window": _TOKENS},
    "trimr": {"agree": (1, 64), "window": (1, 64), "share": (0.0, 1.0), "most": (1, 1000), "floor": (0, 1000)},
}
"""Settings by policy, each a whole number or a number between two, ends included.

Those of other policies are set where the server is started.
"""


def _describe_policies(policies: Any) -> Any:
    """Policies by name: a list has names, or policies, whose settings are read from them."""
    if not isinstance(policies, list | tuple):
        return policies
    described: dict[str, dict[str, Any]] = {}
    for policy in policies:
        name, settings = str(getattr(policy, "name", policy)), dict[str, Any]()
        if not isinstance(policy, str):
            if name not in list_policies() or not is_dataclass(policy):
                raise CapabilityError(
                    f"policy {name!r} is not registered, and only registered ones can be sent to vLLM's workers; use "
                    "tersely.generate with an engine of load_vllm, which runs in this process"
                )
            settings = {f.name: getattr(policy, f.name) for f in fields(policy) if f.metadata != BOUND}
        if name in described:
            raise OptionError(f"policy {name!r} is given twice; accepted: each at most once")
        described[name] = settings
    return described


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class RequestControl:
    """How one request is controlled; see also `GenerationOptions`. `make_control` and `read_control` build it.

    Raises CapabilityError for a policy that needs what vLLM does not offer.
    """

    preset: str | None = None
    policies: Annotated[dict[str, dict[str, Any]] | None, BeforeValidator(_describe_policies)] = None
    """Settings by name, in the order of their precedence; they replace the preset."""
    effort: str = "normal"  # sets only the budget, as the prompt is the caller's
    thinking_budget: Annotated[int | None, Field(ge=1)] = None  # most thinking tokens; None leaves the effort's guard
    answer_reserve: int | None = None
    shadow: bool = False
    held: bool = False  # the budget is a ceiling: thinking that begins in an answer, or under a grammar, counts too
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
        """The policies themselves; a thinking budget that is asked for is kept by one of them."""
        if self.policies is not None:
            made = tuple(make_policy(name, settings) for name, settings in self.policies.items())
        else:
            made = make_policies(self.preset or "balanced")
        return made if self.thinking_budget is None else keep_budget(made)

    def asking(self) -> list[str]:
        """Names of the policies that need trial answers."""
        return [policy.name for policy in self.make_policies() if Capability.TRIALS in policy.requires]

    def make_budget(self, tier: str, max_tokens: int) -> Budget:
        """The budget of a tier within `max_tokens`; raises OptionError if it leaves no room for an answer."""
        return fit_budget(tier, max_tokens, self.answer_reserve, thinking=self.thinking_budget)

    @property
    def disabled(self) -> bool:
        """Whether there is nothing to control."""
        return not self.driver and (canonical_effort(self.effort) == "none" or not self.make_policies())

    def as_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


def check_client_settings(policies: Any) -> None:
    """Check the policies of a control that came as text; raises OptionError.

    What is not a mapping of mappings is left to `RequestControl`.
    """
    if not isinstance(policies, Mapping):
        return
    for policy, settings in policies.items():
        known = CLIENT_SETTINGS.get(policy, {})
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            if name not in known:
                raise unknown(f"setting of policy {shorten(policy)} for requests:", name, known or ("none",))
            _check(f"{policy}.{name}", value, *known[name])


def _check(name: str, value: Any, low: float, high: float) -> None:
    number = int if isinstance(low, int) else int | float
    if not isinstance(value, number) or isinstance(value, bool) or not low <= value <= high:
        kind = "whole number" if number is int else "number"
        raise OptionError(f"setting {name} is {shorten(value)}; accepted: a {kind} from {low} to {high}")


def make_control(**settings: Any) -> RequestControl:
    """Build a control from settings; raises OptionError or CapabilityError."""
    try:
        return RequestControl(**settings)
    except ValidationError as error:
        raise OptionError(f"{KEY!r}: {format_validation_error(error, RequestControl)}") from None


def read_control(settings: Any) -> RequestControl:
    """Read an object, its JSON text, or the name of a preset; raises OptionError or CapabilityError."""
    accepted = "accepted: an object, its JSON text, or the name of a preset"
    if isinstance(settings, str) and settings.lstrip()[:1] == "{":
        try:
            settings = json.loads(settings)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{KEY!r} is not valid JSON: {error}; {accepted}") from None
        if "driver" in settings:  # which belongs to this process, and never comes as text
            raise OptionError(f"{KEY!r}: unknown field 'driver'; remove it")
        check_client_settings(settings.get("policies"))
    if isinstance(settings, str):
        settings = {"preset": settings}
    if not isinstance(settings, dict):
        raise OptionError(f"{KEY!r} is {shorten(settings)}; {accepted}")
    return make_control(**settings)


def parse_control(extra_args: Mapping[str, Any] | None, default: RequestControl | None) -> RequestControl | None:
    """The control of a request with these arguments, or None. Raises as `read_control`."""
    settings = (extra_args or {}).get(KEY)
    control = default if settings is None else read_control(settings)
    return None if control is None or control.disabled else control
