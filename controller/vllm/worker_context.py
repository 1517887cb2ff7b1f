"""The model of a vLLM worker, and the controllers that it makes of requests."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ...models import list_end_tokens
from ..budgets import canonical_effort, tier_by_length
from ..controller import Controller
from ..policies.base import Policy, TrialAnswer
from ..prompts import thinking_state_after_tokens
from ..text.markers import Markers, find_markers
from ..text.tokenizer_adapter import get_adapter
from ..trials import TrialDecoder
from ..types import BindContext, Capability
from ..verification import RuleVerifier, Verifier
from ..verifiers import EndpointVerifier
from .engine_options import OPTIONS, check_endpoints, load_tokenizer
from .request_control import KEY, RequestControl, parse_control, read_control
from .request_controller import LOUD, RequestController, classify
from .trial_endpoint import TrialEndpoint, failed_trial, find_self_key, require_trials

_BOUND = 256  # policies, with their settings, that are kept bound to the model
DRIVERS: dict[str, RequestController] = {}
"""Controllers of requests to an engine in this process, by the `driver` of their control."""


def end_token_ids(model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a turn of a model that vLLM serves, the tokenizer's first."""
    return list_end_tokens(tokenizer, model_config.try_get_generation_config().get("eos_token_id"))


def last_layer(model_config: Any) -> tuple[int, int]:
    """The only layer whose hidden states vLLM shows, by both of its numbers."""
    return -1, int(model_config.hf_text_config.num_hidden_layers)


def folder_fingerprint(model: str) -> str | None:
    """The fingerprint of a checkpoint; None unless it is a folder."""
    if not Path(model).is_dir():
        return None
    from ...probes.fingerprint import checkpoint_fingerprint

    return checkpoint_fingerprint(model)


class WorkerContext:
    """The model of one vLLM worker: its tokenizer, markers, probes and default control.

    `additional_config["tersely"]` of the engine may have `default`, the control of requests that bring none, and
    `markers`, [open, close], where they cannot be found, `verifier`, the URL of a server that answers what rules cannot
    decide, and `trials`, that of a vLLM server of the same model that decodes trial answers; no step waits for them.
    Policies bind to it; implements `types.ModelHandle`.
    """

    def __init__(self, vllm_config: Any, drafts: int = 0) -> None:
        self._drafts = drafts  # the most that vLLM makes in a step
        self.config = vllm_config.model_config
        self.name = str(self.config.served_model_name or self.config.model)
        self.hidden_layers: tuple[int, ...] | None = last_layer(self.config)
        self._settings: Mapping[str, Any] = (vllm_config.additional_config or {}).get(KEY, {})
        trials = {Capability.TRIALS} if self._settings.get("trials") else set()
        self.capabilities = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES} | trials)
        parallel = getattr(vllm_config, "parallel_config", None)
        outputs = getattr(vllm_config, "structured_outputs_config", None)
        parser = getattr(outputs, "reasoning_parser", "")
        self._grammars_hold_in_thinking = not parser or bool(getattr(outputs, "enable_in_reasoning", False))
        check_endpoints(self._settings, getattr(parallel, "tensor_parallel_size", 1))
        self._bind = lru_cache(maxsize=_BOUND)(lambda policy: policy.bind(BindContext(self)))
        self.fingerprint = lru_cache(lambda: folder_fingerprint(self.config.model))

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when the first request is controlled."""
        return load_tokenizer(self.config.model, {name: getattr(self.config, name, None) for name in OPTIONS})

    @cached_property
    def verifier(self) -> Verifier | None:
        """What answers the policies' questions; None decides by rules only."""
        url = self._settings.get("verifier")
        return RuleVerifier(EndpointVerifier(url)) if url else None

    @cached_property
    def trials(self) -> TrialEndpoint | None:
        """What decodes trial answers; None refuses policies that need them."""
        url = self._settings.get("trials")
        return TrialEndpoint(url, self.name if find_self_key(url) else None) if url else None

    @cached_property
    def markers(self) -> Markers:
        """How this model opens and closes its thinking; raises MarkerError if unknown."""
        given = self._settings.get("markers")
        return Markers(*given) if given else find_markers(self.tokenizer)

    @cached_property
    def end(self) -> tuple[int, ...]:
        """The tokens that end a turn."""
        return end_token_ids(self.config, self.tokenizer)

    @cached_property
    def default(self) -> RequestControl | None:
        """The control of a request that brings none."""
        given = self._settings.get("default")
        return None if given is None else read_control(given)

    def check(self) -> None:
        """Raise the error of settings that would leave every request without control, and load the tokenizer."""
        _ = self.verifier, self.trials
        require_trials(self.default, self.trials is not None)
        with contextlib.suppress(Exception):  # each request that needs it says what is wrong
            _ = self.markers, self.end
        if self.default is not None:
            for policy in self.default.make_policies():
                self._bind(policy)

    def classify(self, token: int) -> int:
        """The kind of a token; see `classify`."""
        try:
            return classify(token, get_adapter(self.tokenizer), self.markers, self.end)
        except Exception:  # no token of the tokenizer; or no markers, and every token is read
            return LOUD

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
            return DRIVERS[control.driver]
        require_trials(control, self.trials is not None)
        codec, ids = get_adapter(self.tokenizer), list(prompt or ())
        state = thinking_state_after_tokens(ids, codec, self.markers, self.end)
        if state == "answer" and not control.held:
            return None
        tier = canonical_effort(control.effort)
        if tier == "auto":
            tier = tier_by_length(codec.decode(ids))
        policies: tuple[Policy, ...] = tuple(map(self._bind, control.make_policies()))

        def ask(position: int, forced: Sequence[int], trial: TrialDecoder) -> Future[TrialAnswer]:
            assert self.trials is not None
            if prompt is None:
                return failed_trial("the prompt came as embeddings, which a trial cannot repeat")
            return self.trials.submit([*ids, *request.output[: position + request.unseen], *forced], trial)

        controller = Controller(
            policies,
            codec,
            self.markers,
            control.make_budget(tier, max_tokens),
            opened=state == "thinking",
            shadow=control.shadow,
            held=control.held,
            prompt=control.question,
            prompt_tokens=len(ids),
            verifier=self.verifier,
            ask_trial=None if self.trials is None else ask,
        )
        required = {need for policy in policies for need in policy.requires}
        reads = frozenset(required & {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
        request = RequestController(controller, self.end, reads, lazy=True, late=self._drafts)
        request.above_grammars = control.held and self._grammars_hold_in_thinking
        return request
