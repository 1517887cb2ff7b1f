"""The engine on a vLLM in this process: watchers act inside it, one look a step at all rows under control."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import CapabilityError, ModelError, OptionError
from ..engines.checkpoints import resolve_checkpoint
from ..engines.validation import check_max_new_tokens, collect_openings
from ..types import Completion, PromptRouter, Request, SamplingParams, TokenSink
from .request_control import KEY
from .request_controller import end_token_ids, last_layer
from .sequences import HiddenStateCapture, VllmSequence

if TYPE_CHECKING:
    from vllm import LLM

PROCESSOR = "tersely.controller.vllm.logits_processor:TerselyLogitsProcessor"
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # watchers live in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_ON_CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, every thread of this process would be kept to one core
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
_NUMBERS = count()


class VllmEngine:
    """Runs a model on vLLM; implements `engines.base.Engine`.

    llm: made by `load_vllm`, or a `vllm.LLM` of this process with `PROCESSOR` among its logits processors. Signals are
    made before a token is sampled: `Signals.chosen` is NaN for a watcher, and in what was watched.
    """

    capabilities = frozenset({"signals", "hidden"})

    def __init__(self, llm: LLM, name: str | None = None) -> None:
        self.llm: LLM | None = llm
        config = llm.llm_engine.model_config
        if PROCESSOR not in (config.logits_processors or ()):
            raise CapabilityError(
                f"this vLLM was started without tersely's processor; pass logits_processors=[{PROCESSOR!r}] to it, or "
                "use load_vllm"
            )
        self.name = name or str(config.model)
        self.tokenizer = llm.get_tokenizer()
        self.context_length: int | None = config.max_model_len
        self.hidden_layers = last_layer(config)
        self._folder = Path(config.model)
        told = config.try_get_generation_config()
        self._greedy = not told.get("do_sample", False)
        self._end = end_token_ids(config, self.tokenizer)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests, in order; see `Engine.generate`.

        Draws come from the process's generator: the same seed gives the same batch the same tokens.
        """
        if not requests:
            return []
        if (openings := collect_openings(requests)) is not None:
            return self._open(requests, openings, sampling, sink)
        rows = [self._row(request, row) for row, request in enumerate(requests)]
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        running = {row.name: row for row in rows}
        try:
            for row in rows:
                row.submit(self._running, self._params(row, sampling))
            while self._running.has_unfinished_requests():
                for output in self._running.step():
                    if (found := running.get(output.request_id)) is not None:
                        found.take(output, sink)
        finally:
            self._leave(rows)
        for row in rows:
            row.tell()
        return [row.completion() for row in rows]

    def _open(
        self,
        requests: Sequence[Request],
        openings: Sequence[PromptRouter],
        sampling: SamplingParams,
        sink: TokenSink | None,
    ) -> list[Completion]:
        """Have the beginnings of prompts read, then answer what their openings make of them.

        vLLM's prefix cache keeps what was read; the token that it cannot help sampling is dropped.
        """
        eyes = [HiddenStateCapture(opening.layer) for opening in openings]
        read = [
            Request(request.prompt_ids, 1, eye, layers=(eye.layer,))
            for request, eye in zip(requests, eyes, strict=True)
        ]
        self.generate(read, SamplingParams(temperature=0.0))
        whole = []
        for request, opening, eye in zip(requests, openings, eyes, strict=True):
            assert eye.state is not None
            opened = opening.choose(eye.state)
            ids, warmth = opened.after(request.prompt_ids), opened.temperature
            whole.append(replace(request, prompt_ids=ids, watcher=opened.watcher, temperature=warmth, opening=None))
        done = self.generate(whole, sampling, sink)
        return [
            replace(d, dropped=d.dropped + 1, reprefilled=len(r.prompt_ids))
            for d, r in zip(done, requests, strict=True)
        ]

    @property
    def _running(self) -> Any:
        if self.llm is None:
            raise ModelError(f"the engine {self.name!r} was closed; load it again")
        return self.llm.llm_engine

    def _row(self, request: Request, row: int) -> VllmSequence:
        if request.steering is not None:
            raise CapabilityError("nothing is steered inside vLLM; use the engine 'transformers'")
        if request.leaving is not None:
            raise CapabilityError("tokens cannot leave early inside vLLM; use the engine 'transformers'")
        if wrong := [layer for layer in request.layers if layer not in self.hidden_layers]:
            raise CapabilityError(
                f"hidden layer {wrong[0]} was asked for; inside vLLM there is the last one "
                f"({self.hidden_layers[-1]}) alone"
            )
        limit = check_max_new_tokens(request, row, self.context_length, self.name)
        return VllmSequence(row, f"tersely-{next(_NUMBERS)}", request, limit, self._end)

    def _leave(self, rows: Sequence[VllmSequence]) -> None:
        """Forget all rows; what still runs, after an error or Ctrl-C, is ended."""
        from .worker_context import unregister

        if unfinished := [row.name for row in rows if row.finish is None]:
            self._running.abort_request(unfinished)
        for row in rows:
            unregister(row.name)

    def _params(self, row: VllmSequence, sampling: SamplingParams) -> Any:
        assert self.llm is not None
        params = self.llm.get_default_sampling_params()
        params.max_tokens = row.limit
        temperature = sampling.temperature
        if temperature is None and self._greedy:
            temperature = 0.0  # as transformers does where a checkpoint says nothing; vLLM would take 1
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
        params.logprobs = 0 if row.chances_wanted else None
        if row.driven is not None:
            params.extra_args = {KEY: {"driver": row.name}}
        return params

    def fingerprint(self) -> str | None:
        """See `Engine.fingerprint`."""
        if not self._folder.is_dir():
            return None
        from ...probes.fingerprint import checkpoint_fingerprint

        return checkpoint_fingerprint(self._folder)

    def close(self) -> None:
        """Let go of the model. vLLM's own `shutdown` would take down every other one in this process."""
        self.llm = None
        gc.collect()


def prepare_environment(on_cpu: bool) -> None:
    """Set what vLLM reads from its environment, before it is imported; what a user has set stands."""
    for name, value in (_SETTINGS | (_ON_CPU if on_cpu else {})).items():
        os.environ.setdefault(name, value)


def load_vllm(
    model: str | os.PathLike[str],
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> VllmEngine:
    """Start vLLM on a model, in this process, with control inside.

    dtype: "auto" as saved (vLLM itself would make half precision of float32). options: further arguments of `vllm.LLM`.
    Raises CapabilityError where there is no vLLM, or it runs in processes of its own, ModelError for no such model.
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
    if PROCESSOR in given.get("logits_processors", ()):
        raise OptionError("tersely's own processor is always there; leave it out of logits_processors")
    processors = [*given.pop("logits_processors", ()), PROCESSOR]
    kind = _saved_dtype(place) if dtype == "auto" else dtype
    llm = LLM(model=place, dtype=kind, max_model_len=max_model_len, logits_processors=processors, seed=0, **given)
    return VllmEngine(llm, name)


def _saved_dtype(place: str) -> str:
    from transformers import AutoConfig

    saved = getattr(AutoConfig.from_pretrained(place), "dtype", None)
    return "auto" if saved is None else str(saved).removeprefix("torch.")
