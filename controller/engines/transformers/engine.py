"""The transformers engine: a model and its tokenizer in this process, decoding left-padded batches."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....errors import ModelError, OptionError, did_you_mean
from ....kernels.grouped_attention import use_grouped
from ...types import Completion, Request, SamplingParams, TokenSink
from ..checkpoints import check_causal, check_tokenizer, load_or_raise, resolve_checkpoint
from ..validation import check_max_new_tokens, collect_openings
from .decode import Decoded, decode_rows
from .hidden_states import HiddenStates
from .model_runner import can_be_ragged, make_runner
from .research.early_exit import install_early_exit, supports_early_exit
from .research.steering import install_steering


class TransformersEngine:
    """Runs a causal language model of transformers; the model's weights are never changed."""

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        ragged = ("crop", "ragged") if can_be_ragged(model) else ()
        early = ("shortcut",) if supports_early_exit(model) else ()
        self.capabilities = frozenset({"signals", "chances", "hidden", "steer", "retract", *ragged, *early})
        self._fingerprint: str | None = None
        length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.context_length: int | None = length

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests as one batch, in order; global random state is left alone when a seed is given.

        Raises PromptError for a prompt that is empty or fills the context, OptionError for a limit below one.
        """
        if not requests:
            return []
        if self.model is None:
            raise ModelError(f"the engine {self.name!r} was closed; load it again")
        budgets = [
            check_max_new_tokens(request, row, self.context_length, self.name) for row, request in enumerate(requests)
        ]
        if any(request.opening is not None for request in requests) and "ragged" not in self.capabilities:
            return self._reread(requests, sampling, sink)
        layers = {layer for request in requests for layer in request.layers}
        openings = collect_openings(requests)
        states = HiddenStates(self.model, layers | {opening.layer for opening in openings or ()})
        decoded: list[Decoded] = []

        def run(model: Any, input_ids: Tensor, **prepared: Any) -> Tensor:
            decoded.append(
                decode_rows(
                    model,
                    input_ids,
                    watchers=[request.watcher for request in requests],
                    max_new_tokens=budgets,
                    sink=sink,
                    measured=any(request.signals for request in requests),
                    states=states if layers or openings else None,
                    openings=openings,
                    temperatures=[request.temperature for request in requests],
                    steering=steering,
                    leaving=leaving,
                    inverse=sampling.inverse,
                    **prepared,
                )
            )
            return input_ids

        try:
            with (
                install_steering(self.model, [request.steering for request in requests]) as steering,
                install_early_exit(self.model, [request.leaving for request in requests]) as leaving,
            ):
                self._generate(requests, sampling, max(budgets), run)
        finally:
            states.close()
        return [row.completion() for row in decoded[0].rows]

    def _generate(self, requests: Sequence[Request], sampling: SamplingParams, longest: int, run: Any) -> None:
        """Let transformers prepare a batch and hand it to `run`."""
        ids, mask = self._padded([request.prompt_ids for request in requests])
        config = self._generation_config(sampling, longest)
        with _seeded(sampling.seed):
            self.model.generate(ids, attention_mask=mask, generation_config=config, custom_generate=run)

    def _reread(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None
    ) -> list[Completion]:
        """Answer requests with openings where rows cannot be fed unequally: prompts are read once more when whole."""
        openings = collect_openings(requests) or []
        states = HiddenStates(self.model, {opening.layer for opening in openings})

        def read(model: Any, input_ids: Tensor, generation_config: Any, **prepared: Any) -> Tensor:
            kwargs = {k: v for k, v in prepared.items() if k not in ("logits_processor", "stopping_criteria")}
            with torch.no_grad():
                make_runner(model, input_ids, generation_config, kwargs).prefill(input_ids)
            return input_ids

        try:
            self._generate(requests, sampling, 1, read)
            whole = []
            for row, (request, opening) in enumerate(zip(requests, openings, strict=True)):
                opened = opening.choose(states.read(opening.layer, row))
                ids, warmth = opened.after(request.prompt_ids), opened.temperature
                whole.append(replace(request, prompt_ids=ids, watcher=opened.watcher, temperature=warmth, opening=None))
        finally:
            states.close()
        done = self.generate(whole, sampling, sink)
        return [replace(d, reprefilled=len(r.prompt_ids)) for d, r in zip(done, requests, strict=True)]

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        if self._fingerprint is None:
            from ....probes.fingerprint import fingerprint

            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def close(self) -> None:
        """Free the model."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Stack prompts, padded on the left: ids and mask, both [rows, length]."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generation_config(self, sampling: SamplingParams, max_new_tokens: int) -> Any:
        """The model's own defaults with the options laid over them."""
        config = copy.deepcopy(self.model.generation_config)
        config.max_new_tokens, config.max_length = max_new_tokens, None
        config.return_dict_in_generate = False
        if config.eos_token_id is None:
            config.eos_token_id = self.tokenizer.eos_token_id
        if config.pad_token_id is None:
            first = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
            pad = self.tokenizer.pad_token_id
            config.pad_token_id = pad if pad is not None else first
        if sampling.temperature is not None:
            config.do_sample = sampling.temperature > 0
            config.temperature = sampling.temperature or None
        for option in ("top_p", "top_k"):
            if (value := getattr(sampling, option)) is not None:
                setattr(config, option, value)
        if not config.do_sample:
            # What the model brings along would make transformers warn that greedy decoding ignores it.
            config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
        return config


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed all generators for a while, then put them back; None does nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def load_engine(
    model: str | os.PathLike[str], dtype: str = "auto", device: str | None = None, *, grouped: bool = False
) -> TransformersEngine:
    """Load an embedded model by name, a folder, or a model of the Hugging Face hub.

    `dtype` is "auto" (as saved) or a torch name such as "bfloat16"; `device` None takes a GPU where there is one.
    `grouped` reads keys once for all heads that share them, on a CPU; it is faster, and adds up in another order, so
    that not every token is the one that transformers gives.

    Raises ModelError when there is no such model, it is not a causal language model, or it lacks a tokenizer.
    """
    name = os.fspath(model)
    place = resolve_checkpoint(name)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = load_or_raise(name, "configuration", lambda: AutoConfig.from_pretrained(place))
    check_causal(name, config)
    check_tokenizer(name, Path(place))
    if str((getattr(config, "quantization_config", None) or {}).get("quant_method")).startswith("tersely"):
        from ....kernels import quantization  # noqa: F401 - teaches transformers what `tersely quantize` writes
    tokenizer = load_or_raise(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(place))
    weights = load_or_raise(name, "weights", lambda: AutoModelForCausalLM.from_pretrained(place, dtype=_dtype(dtype)))
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    weights = weights.to(target).eval()
    if grouped:
        use_grouped(weights)
    return TransformersEngine(weights, tokenizer, name=name)


def _dtype(name: str) -> Any:
    value = getattr(torch, name, None)
    if name != "auto" and not isinstance(value, torch.dtype):
        raise OptionError(f"unknown dtype {name!r}; {did_you_mean(name, ('auto', 'float32', 'bfloat16', 'float16'))}")
    return name if name == "auto" else value
