"""What a vLLM worker knows of the model it serves, and how it makes the drivers of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..budgets import canonical_effort, tier_by_length
from ..controller import Controller
from ..policies.base import Policy
from ..probe_registry import bind_policy
from ..prompts import thinking_state_after
from ..text.markers import Markers, find_markers
from ..text.tokenizer_adapter import TokenizerAdapter, get_adapter
from .request_control import KEY, RequestControl, parse_control, read_control
from .request_controller import RequestController, end_token_ids, last_layer

_HERE: dict[str, RequestController] = {}
"""Drivers of requests to an engine in this process, by what their control names."""


def register(name: str, driven: RequestController) -> None:
    """Have the request whose control names this driver be driven by it."""
    _HERE[name] = driven


def unregister(name: str) -> None:
    """Forget a driver."""
    _HERE.pop(name, None)


class WorkerContext:
    """The model of one vLLM worker: its tokenizer, markers and probes, and what requests get that ask for nothing.

    settings: `additional_config["tersely"]` of the engine: `default`, the control of requests that bring none, and
    `markers`, [open, close], where they cannot be found. Looks like an engine to policies that bind to one.
    """

    capabilities = frozenset({"signals", "hidden"})

    def __init__(self, vllm_config: Any) -> None:
        self.config = vllm_config.model_config
        self.name = str(self.config.served_model_name or self.config.model)
        self.hidden_layers = last_layer(self.config)
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
        """How this model thinks; raises MarkerError if that cannot be told."""
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
        """Of the checkpoint that is served; None if that is no folder."""
        if self._fingerprint is None and Path(self.config.model).is_dir():
            from ...probes.fingerprint import checkpoint_fingerprint

            self._fingerprint = checkpoint_fingerprint(self.config.model)
        return self._fingerprint

    def driven(
        self, extra_args: Mapping[str, Any] | None, prompt: Sequence[int] | None, max_tokens: int
    ) -> RequestController | None:
        """Who drives a request; None where nothing is to be controlled.

        prompt: its ids, None where it came as embeddings. Raises what a wrong setting or a model without markers does.
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
        policies = tuple(self._bind(policy) for policy in control.made())
        controller = Controller(
            policies,
            self.codec,
            self.markers,
            control.budget(tier, max_tokens),
            opened=state == "thinking",
            shadow=control.shadow,
            prompt=control.question,
            prompt_tokens=len(prompt or ()),
        )
        wants = {need for policy in policies for need in policy.needs}
        return RequestController(controller, self.end, frozenset(wants & {"signals", "hidden"}))

    def _bind(self, policy: Policy) -> Policy:
        if policy not in self._bound:
            self._bound[policy] = bind_policy(policy, self, None)  # type: ignore[arg-type]  # as far as policies look, an engine
        return self._bound[policy]
