"""`tersely.LLM`: vLLM's own class for batches, with control inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import vllm

from ...errors import OptionError
from ..budgets import OPENAI_EFFORTS, canonical_effort
from ..policies.base import Policy
from ..prompts import thinking_state_after_tokens
from ..text.markers import Markers, find_markers
from ..text.reasoning_parser import split_reasoning
from ..text.tokenizer_adapter import get_adapter
from ..trace import Decision
from .engine import PROCESSOR
from .engine_options import check_endpoints, load_tokenizer, refuse_speculation
from .processes import TraceStore, request_tag
from .request_control import KEY, RequestControl, make_control
from .trial_endpoint import require_trials
from .worker_context import end_token_ids


@dataclass(frozen=True, slots=True)
class ControlInfo:
    """The decisions about one output, and its tokens by kind."""

    trace: tuple[Decision, ...]
    thinking: int
    answer: int
    injected: int
    trial: int = 0  # of trial answers, which other requests decoded


class LLM(vllm.LLM):  # type: ignore[misc]
    """A drop-in for `vllm.LLM` whose requests are controlled; see `tersely.generate` for the keywords that it adds.

    `generate` and `chat` return vLLM's own outputs; each of `RequestOutput.outputs` has one more attribute, `tersely`,
    a `ControlInfo`. Keywords given here apply to all requests, those of a call to that call; effort "none" and preset
    "off" leave requests alone. Everything else is passed to vLLM.
    """

    def __init__(
        self,
        model: str,
        *,
        preset: str | None = "balanced",
        policies: Sequence[Policy | str] | None = None,
        effort: str | None = None,
        markers: Markers | None = None,
        **options: Any,
    ) -> None:
        from ...models import resolve_checkpoint

        place = resolve_checkpoint(model)
        refuse_speculation({"model": place, **options})
        tokenizer = load_tokenizer(place, options)
        self.markers = markers or find_markers(tokenizer)  # raises before the model is loaded
        self._default = make_control(preset=preset, policies=policies, effort=effort or "normal")
        self._names_effort = effort is not None
        settings = dict(options.pop("additional_config", None) or {})
        if markers is not None:
            settings[KEY] = {**settings.get(KEY, {}), "markers": [markers.open, markers.close]}
        self._trials = bool(settings.get(KEY, {}).get("trials"))
        require_trials(self._default, self._trials)
        check_endpoints(settings.get(KEY, {}), options.get("tensor_parallel_size") or 1)
        self._traces = TraceStore()
        try:
            super().__init__(
                place,
                logits_processors=[*(options.pop("logits_processors", None) or ()), PROCESSOR],
                additional_config=settings,
                **options,
            )
        except BaseException:
            self._traces.close()
            raise
        self._end = end_token_ids(self.model_config, tokenizer)

    def generate(self, prompts: Any, sampling_params: Any = None, **options: Any) -> list[Any]:
        """See `vllm.LLM.generate`.

        `preset`, `policies`, `effort`, `thinking_budget`, `answer_reserve` and `shadow` control it.
        """
        chosen, rest = self._chosen(options)
        size = len(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else 1
        marked = self._mark(sampling_params, chosen, size)
        return self._read(super().generate(prompts, marked, **rest), marked)

    def chat(self, messages: Any, sampling_params: Any = None, *args: Any, **options: Any) -> list[Any]:
        """See `vllm.LLM.chat`; controlled as `generate` is, with the effort passed to the chat template."""
        chosen, rest = self._chosen(options)
        template: dict[str, Any] = {}
        if (tier := canonical_effort(chosen.effort)) == "none":
            template = {"enable_thinking": False}
        elif self._names_effort or "effort" in options:  # else the model's own default is the best
            template = {"reasoning_effort": OPENAI_EFFORTS.get(tier, "medium")}
        rest["chat_template_kwargs"] = {**template, **(rest.get("chat_template_kwargs") or {})}
        single = bool(messages) and isinstance(messages[0], dict)
        marked = self._mark(sampling_params, chosen, 1 if single else len(messages))
        return self._read(super().chat(messages, marked, *args, **rest), marked)

    def _chosen(self, options: Mapping[str, Any]) -> tuple[RequestControl, dict[str, Any]]:
        """The control of a call, and the options for vLLM."""
        names = ("preset", "policies", "effort", "thinking_budget", "answer_reserve", "shadow")
        own = {name: options[name] for name in names if name in options}
        rest = {name: value for name, value in options.items() if name not in names}
        kept = {"effort": self._default.effort} if "preset" in own or "policies" in own else self._default.as_dict()
        chosen = make_control(**{**kept, **own}) if own else self._default
        require_trials(chosen, self._trials)
        return chosen, rest

    def _mark(self, params: Any, chosen: RequestControl, size: int) -> list[Any]:
        """Parameters of each prompt, each with its own tag."""
        params = self.get_default_sampling_params() if params is None else params
        each = list(params) if isinstance(params, Sequence) else [params] * size
        if len(each) != size:
            raise OptionError(f"{len(each)} sampling parameters for {size} prompts; accepted: one, or one each")
        marked = []
        for one in each:
            copy = one.clone()
            given = copy.extra_args or {}
            if KEY not in given and not chosen.disabled:
                tagged = replace(chosen, tag=self._traces.tag())
                copy.extra_args = {**given, KEY: tagged.as_dict()}
            marked.append(copy)
        return marked

    def _read(self, outputs: list[Any], params: list[Any]) -> list[Any]:
        """Add the control info to each output."""
        codec = get_adapter(self.get_tokenizer())
        for output, own in zip(outputs, params, strict=True):
            found = self._traces.take(request_tag(own.extra_args))
            state = thinking_state_after_tokens(list(output.prompt_token_ids or ()), codec, self.markers, self._end)
            for one in output.outputs:
                trace = found.get(one.index, ())
                ids = list(one.token_ids)
                forced = any(d.action == "close" and d.acted for d in trace)
                thinking = split_reasoning(ids, codec, self.markers, state, forced).thinking_tokens
                injected = sum(len(codec.encode(d.text)) for d in trace if d.acted)
                one.tersely = ControlInfo(trace, thinking, len(ids) - thinking, injected, sum(d.tokens for d in trace))
        return outputs

    def close(self) -> None:
        """Stop listening for traces, and end vLLM where it runs in processes of its own."""
        if vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING:  # in this process, others may still use it
            self.llm_engine.engine_core.shutdown()
        self._traces.close()
