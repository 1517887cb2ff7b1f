"""The engine on a vLLM in this process; watchers act inside it."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from typing import TYPE_CHECKING, Any

import torch

from ...errors import CapabilityError, ModelError, OptionError
from ...models import resolve_checkpoint
from ..engines.sequence import check_max_new_tokens
from ..types import (
    KEEP,
    Capability,
    Completion,
    CompletionListener,
    Directive,
    FinishReason,
    Request,
    SamplingParams,
    Signals,
    State,
    StepInfo,
    TokenSink,
)
from .engine_options import load_tokenizer, refuse_speculation
from .request_control import KEY
from .request_controller import RequestController
from .worker_context import DRIVERS, end_token_ids, folder_fingerprint, last_layer

if TYPE_CHECKING:
    from vllm import LLM

PROCESSOR = "tersely.controller.vllm.logits_processor:TerselyLogitsProcessor"
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # watchers live in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_ON_CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise every thread of this process would be bound to one core
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
_NUMBERS = count()


class VllmEngine:
    """Runs a model on a `vllm.LLM` of this process with `PROCESSOR`; implements `types.Engine`.

    Signals are computed before a token is sampled, so `Signals.chosen` is NaN where there is a watcher.
    """

    capabilities = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})

    def __init__(self, llm: LLM, name: str | None = None) -> None:
        self.llm: LLM | None = llm
        config = llm.llm_engine.model_config
        if PROCESSOR not in (config.logits_processors or ()):
            raise CapabilityError(
                f"this vLLM was started without tersely's logits processor; pass logits_processors=[{PROCESSOR!r}] to "
                "it, or use load_vllm"
            )
        self.name = name or str(config.model)
        self.tokenizer = llm.get_tokenizer()
        self.context_length: int | None = config.max_model_len
        self.hidden_layers: tuple[int, ...] | None = last_layer(config)
        self._folder = config.model
        configured = config.try_get_generation_config()
        self._greedy = not configured.get("do_sample", False)
        self._end = end_token_ids(config, self.tokenizer)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests, in order; see `Engine.generate`.

        Draws come from the process's generator: the same seed gives the same batch the same tokens.
        """
        if not requests:
            return []
        rows = [self._make_sequence(request, index) for index, request in enumerate(requests)]
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        running = {row.name: row for row in rows}
        try:
            for row in rows:
                if row.controller is not None:
                    DRIVERS[row.name] = row.controller
                prompt = {"prompt_token_ids": list(row.request.prompt_ids)}
                self._running.add_request(row.name, prompt, self._params(row, sampling))
            while self._running.has_unfinished_requests():
                for output in self._running.step():
                    if (found := running.get(output.request_id)) is not None:
                        found.update(output, sink)
        finally:
            if unfinished := [row.name for row in rows if row.finish is None]:  # after an error or Ctrl-C
                self._running.abort_request(unfinished)
            for row in rows:
                DRIVERS.pop(row.name, None)
        completions = [row.completion() for row in rows]
        for request, completion in zip(requests, completions, strict=True):
            if isinstance(request.watcher, CompletionListener):
                request.watcher.on_finish(completion)
        return completions

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> list[State]:
        """See `Engine.hidden_states`; the prefix cache keeps what was read."""
        captures = [HiddenStateCapture(layer) for _ in prompts]
        requests = [Request(tuple(ids), 1, one, layers=(layer,)) for ids, one in zip(prompts, captures, strict=True)]
        self.generate(requests, SamplingParams(temperature=0.0))
        states = [capture.state for capture in captures if capture.state is not None]
        if len(states) < len(captures):
            raise CapabilityError("vLLM kept no hidden states: another plug-in has replaced its logits layer")
        return states

    @property
    def _running(self) -> Any:
        if self.llm is None:
            raise ModelError(f"the engine {self.name!r} was closed; load it again")
        return self.llm.llm_engine

    def _make_sequence(self, request: Request, index: int) -> VllmSequence:
        if request.modifiers:
            raise CapabilityError("vLLM cannot modify the forward pass; use the engine 'transformers'")
        shown = self.hidden_layers or ()
        if wrong := [layer for layer in request.layers if layer not in shown]:
            raise CapabilityError(f"hidden layer {wrong[0]} was requested; vLLM shows only the last one ({shown[-1]})")
        limit = check_max_new_tokens(request, index, self.context_length, self.name)
        return VllmSequence(index, f"tersely-{next(_NUMBERS)}", request, limit, self._end)

    def _params(self, row: VllmSequence, sampling: SamplingParams) -> Any:
        assert self.llm is not None
        params = self.llm.get_default_sampling_params()
        params.max_tokens = row.limit
        temperature = sampling.temperature
        if temperature is None and self._greedy:
            temperature = 0.0  # as transformers does where a checkpoint gives none; vLLM would use 1
        if request_own := row.request.temperature if temperature != 0 else None:
            temperature = request_own
        if temperature is not None:
            params.temperature = temperature
        if params.temperature == 0:
            params.top_p, params.top_k = 1.0, 0
        else:
            params.top_p = params.top_p if sampling.top_p is None else sampling.top_p
            params.top_k = params.top_k if sampling.top_k is None else sampling.top_k
        params.detokenize = False
        params.logprobs = 0 if row.wants_logprobs else None
        if row.controller is not None:
            params.extra_args = {KEY: {"driver": row.name}}
        return params

    def fingerprint(self) -> str | None:
        return folder_fingerprint(self._folder)

    def close(self) -> None:
        """Release the model. vLLM's own `shutdown` would end every other one in this process."""
        self.llm = None
        gc.collect()


def prepare_environment(on_cpu: bool) -> None:
    """Set environment variables for vLLM before it is imported; the user's own values stay."""
    for name, value in (_SETTINGS | (_ON_CPU if on_cpu else {})).items():
        os.environ.setdefault(name, value)


def load_vllm(
    model: str | os.PathLike[str],
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> VllmEngine:
    """Start vLLM on a model, in this process, with control inside; `options` are further arguments of `vllm.LLM`.

    Dtype "auto" is the saved one, where vLLM itself would turn float32 into half precision. Raises CapabilityError if
    vLLM is not installed or runs in processes of its own, ModelError if the model does not exist.
    """
    name = os.fspath(model)
    place = resolve_checkpoint(name)
    prepare_environment(on_cpu=not torch.cuda.is_available())
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise CapabilityError(
            "this engine needs vLLM in one process; unset VLLM_ENABLE_V1_MULTIPROCESSING, or use tersely.LLM"
        )
    try:
        from vllm import LLM
    except ImportError:
        raise CapabilityError("vLLM is not installed; pip install 'tersely[vllm]', or use transformers") from None
    given = dict(options or {})
    refuse_speculation({"model": place, "max_model_len": max_model_len, **given})
    load_tokenizer(place, given)  # raises before the model is loaded
    if PROCESSOR in given.get("logits_processors", ()):
        raise OptionError("tersely's own logits processor is always added; leave it out of logits_processors")
    processors = [*given.pop("logits_processors", ()), PROCESSOR]
    if dtype == "auto":
        from transformers import AutoConfig

        dtype = str(getattr(AutoConfig.from_pretrained(place), "dtype", None) or "auto").removeprefix("torch.")
    llm = LLM(model=place, dtype=dtype, max_model_len=max_model_len, logits_processors=processors, seed=0, **given)
    return VllmEngine(llm, name)


@dataclass(slots=True)
class HiddenStateCapture:
    """Keeps the hidden state that the first token was sampled from; implements `types.Watcher`."""

    layer: int
    state: State | None = None

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        if self.state is None and step is not None:
            self.state = step.state(self.layer)
        return KEEP


class VllmSequence:
    """One request in flight."""

    def __init__(self, index: int, name: str, request: Request, limit: int, end: tuple[int, ...]) -> None:
        self.index, self.name, self.request, self.limit, self.end = index, name, request, limit, end
        self.ids: list[int] = []
        self.finish: FinishReason | None = None
        self.controller: RequestController | None = None
        self._shown = 0
        self._probabilities: list[float] = []
        # vLLM then reports the probability of each token; for a watcher it would come too late.
        self.wants_logprobs = request.signals and request.watcher is None
        if request.watcher is not None or request.signals:
            reads = {Capability.LOGIT_SIGNALS} if request.signals else set()
            reads |= {Capability.HIDDEN_STATES} if request.layers else set()
            self.controller = RequestController(request.watcher, end, frozenset(reads), keep_signals=request.signals)

    def update(self, output: Any, sink: TokenSink | None) -> None:
        """Process the output of vLLM so far."""
        done = output.outputs[0]
        self.ids = list(done.token_ids)
        if output.finished:
            self.finish = "length" if done.finish_reason == "length" else "stop"
            if self.controller is not None:
                self.controller.read(self.ids)
                if self.controller.stopped:
                    self.finish = "stopped"
            if self.wants_logprobs:
                logs = zip(self.ids, done.logprobs, strict=True)
                self._probabilities = [math.exp(known[token].logprob) for token, known in logs]
            if self.ids and self.ids[-1] in self.end:
                self.ids.pop()
        if sink is not None:
            self._show(sink)

    def _show(self, sink: TokenSink) -> None:
        """Announce new tokens, those that were forced together in one piece: the next step knows which were."""
        known = len(self.ids) if self.controller is None or self.finish else min(len(self.ids), self.controller.settled)
        for forced, run in groupby(range(self._shown, known), self._forced):
            for ids in [[self.ids[place] for place in run]] if forced else ([self.ids[place]] for place in run):
                sink(self.index, tuple(ids), forced)
        self._shown = max(self._shown, known)

    def _forced(self, place: int) -> bool:
        forced = () if self.controller is None else self.controller.forced
        return place < len(forced) and forced[place]

    def completion(self) -> Completion:
        """The output without the token that ended it."""
        forced = tuple(self._forced(place) for place in range(len(self.ids)))
        return Completion(tuple(self.ids), forced, self.finish or "length", signals=self._signals())

    def _signals(self) -> tuple[Signals | None, ...]:
        """Those of each token; None of one that was not seen before the row ended."""
        if self.controller is None or not self.request.signals:
            return ()
        seen = self.controller.signals[: len(self.ids)]
        seen = [*seen, *[None] * (len(self.ids) - len(seen))]
        if not self._probabilities:
            return tuple(seen)
        chances = self._probabilities[: len(seen)]
        return tuple(one and replace(one, chosen=chance) for one, chance in zip(seen, chances, strict=True))
