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

from ...errors import CapabilityError, OptionError, shorten
from ...validation import format_validation_error
from ..budgets import Budget, canonical_effort, fit_budget
from ..policies import list_policies, make_policies, make_policy
from ..policies.base import BOUND, Policy
from ..types import Capability
from .client_settings import check_client_settings

KEY = "tersely"
AVAILABLE = frozenset(
    {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES, Capability.VERIFIER, Capability.TRIALS, Capability.LOGPROBS}
)
"""What policies may require inside vLLM, which keeps every token: nothing can be taken back. Probabilities are known of
trials only, and these need an endpoint, see `trial_endpoint`."""


_CONVERTED = frozenset(
    {"compilation_config", "structured_outputs_config", "profiler_config", "attention_config", "kv_transfer_config"}
)
"""Arguments that `vllm.LLM` takes in other forms than the engine does; no model runner depends on them."""


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


def speculation_error(what: str, instead: str) -> CapabilityError:
    """The error for speculative decoding that cannot be controlled."""
    return CapabilityError(
        f"{what}, so control inside vLLM does not work with this speculative decoding; {instead}, or start vLLM "
        "without a speculative_config",
        code="speculative_decoding",
    )


def check_speculation(vllm_config: Any, on_v2: bool) -> int:
    """The most drafts of a step; raises CapabilityError where they cannot be controlled."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return 0
    if not on_v2:
        raise speculation_error(
            "vLLM chose its model runner V1, which leaves logits processors out where there are drafts",
            "use a GPU, a method of runner V2 (ngram, ngram_gpu, draft_model, eagle, eagle3, mtp), and no "
            "VLLM_USE_V2_MODEL_RUNNER=0",
        )
    if speculative.rejection_sample_method == "synthetic":
        raise speculation_error(
            "rejection_sample_method 'synthetic' accepts drafts without a look at the logits", "use 'standard'"
        )
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        raise speculation_error("every worker samples for a part of the batch", "leave out batch-sharded sampling")
    return int(speculative.num_speculative_tokens)


def refuse_speculation(options: Mapping[str, Any]) -> None:
    """Refuse engine arguments whose speculative decoding cannot be controlled, before a model is loaded.

    Raises CapabilityError. Builds vLLM's configuration where drafts are asked for, as only that knows its runner.
    """
    if not any(options.get(name) for name in ("speculative_config", "spec_method", "spec_model", "spec_tokens")):
        return
    from vllm.engine.arg_utils import EngineArgs

    known = {f.name for f in fields(EngineArgs)} - _CONVERTED
    given = {name: value for name, value in options.items() if name in known}
    if isinstance(settings := given.get("speculative_config"), dict):
        given["speculative_config"] = dict(settings)  # vLLM adds to it
    config = EngineArgs(**given).create_engine_config()
    check_speculation(config, on_v2=config.use_v2_model_runner)


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
