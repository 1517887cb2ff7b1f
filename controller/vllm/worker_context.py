"""What a vLLM worker knows about its model, and how it makes the controllers of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..budgets import canonical_effort, tier_by_length
from ..controller import Controller
from ..policies.base import Policy
from ..prompts import thinking_state_after
from ..text.markers import Markers, find_markers
from ..text.tokenizer_adapter import TokenizerAdapter, get_adapter
from ..types import BindContext, Capability
from .request_control import KEY, RequestControl, parse_control, read_control
from .request_controller import RequestController, end_token_ids, last_layer

_HERE: dict[str, RequestController] = {}
"""Controllers of requests to an engine in this process, by the `driver` of their control."""


def register(name: str, controller: RequestController) -> None:
    """Let this controller drive the request whose control names it."""
    _HERE[name] = controller


def unregister(name: str) -> None:
    """Forget a controller."""
    _HERE.pop(name, None)


class WorkerContext:
    """The model of one vLLM worker: its tokenizer, markers, probes and default control.

    `additional_config["tersely"]` of the engine may have `default`, the control of requests that bring none, and
    `markers`, [open, close], where they cannot be found. Policies bind to it; implements `types.ModelHandle`.
    """

    capabilities = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})

    def __init__(self, vllm_config: Any) -> None:
        self.config = vllm_config.model_config
        self.name = str(self.config.served_model_name or self.config.model)
        self.hidden_layers: tuple[int, ...] | None = last_layer(self.config)
        settings = (vllm_config.additional_config or {}).get(KEY, {})
        self._default = settings.get("default")
        self._markers = settings.get("markers")
        self._bound: dict[Policy, Policy] = {}
        self._fingerprint: str | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when the first request is controlled."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.config.tokenizer,
            revision=self.config.tokenizer_revision,
            trust_remote_code=self.config.trust_remote_code,
        )

    @cached_property
    def codec(self) -> TokenizerAdapter:
        """Text and ids of this model."""
        return get_adapter(self.tokenizer)

    @cached_property
    def markers(self) -> Markers:
        """How this model opens and closes its thinking; raises MarkerError if unknown."""
        return Markers(*self._markers) if self._markers else find_markers(self.tokenizer)

    @cached_property
    def end(self) -> tuple[int, ...]:
        """The tokens that end a turn."""
        return end_token_ids(self.config, self.tokenizer)

    @cached_property
    def default(self) -> RequestControl | None:
        """The control of a request that brings none."""
        return None if self._default is None else read_control(self._default)

    def fingerprint(self) -> str | None:
        """The fingerprint of the served checkpoint; None unless it is a folder."""
        if self._fingerprint is None and Path(self.config.model).is_dir():
            from ...probes.fingerprint import checkpoint_fingerprint

            self._fingerprint = checkpoint_fingerprint(self.config.model)
        return self._fingerprint

    def make_controller(
        self, extra_args: Mapping[str, Any] | None, prompt: Sequence[int] | None, max_tokens: int
    ) -> RequestController | None:
        """The controller of a request; None where there is nothing to control.

        `prompt` is None where it came as embeddings. Raises OptionError for a wrong setting, MarkerError for a model
        without markers.
        """
        control = parse_control(extra_args, self.default)
        if control is None:
            return None
        if control.driver:
            return _HERE[control.driver]
        state = thinking_state_after(self.codec.decode(list(prompt or ())[-32:]), self.markers)
        if state == "answer":
            return None
        tier = canonical_effort(control.effort)
        if tier == "auto":
            tier = tier_by_length(self.codec.decode(list(prompt or ())))
        policies = tuple(self._bind(policy) for policy in control.make_policies())
        controller = Controller(
            policies,
            self.codec,
            self.markers,
            control.make_budget(tier, max_tokens),
            opened=state == "thinking",
            shadow=control.shadow,
            prompt=control.question,
            prompt_tokens=len(prompt or ()),
        )
        required = {need for policy in policies for need in policy.requires}
        return RequestController(controller, self.end, frozenset(required & self.capabilities))

    def _bind(self, policy: Policy) -> Policy:
        if policy not in self._bound:
            self._bound[policy] = policy.bind(BindContext(self))
        return self._bound[policy]
