"""The transformers engine: a model and its tokenizer in this process, decoding left-padded batches."""

from __future__ import annotations

import copy
import gc
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ....errors import ModelError, OptionError, unknown
from ....kernels.attention import use_grouped
from ....models import load_config, load_or_raise, load_tokenizer
from ...types import Capability, Completion, Request, SamplingParams, State, TokenSink
from ..sequence import check_max_new_tokens
from .decode import BatchDecoder
from .hooks import HiddenStates, SignalsHook, StepHook
from .model_runner import can_be_ragged


class TransformersEngine:
    """Runs a causal language model of transformers; the model's weights are never changed."""

    hidden_layers: tuple[int, ...] | None = None

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        capabilities = {
            Capability.LOGIT_SIGNALS,
            Capability.TOP_LOGPROBS,
            Capability.LOGPROBS,
            Capability.HIDDEN_STATES,
            Capability.FORWARD_MODIFIERS,
            Capability.RETRACT,
        }
        if can_be_ragged(model):
            capabilities |= {Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RAGGED_BATCH}
        self.capabilities = frozenset(capabilities)
        self._fingerprint: str | None = None
        length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.context_length: int | None = length

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests as one batch, in order; with a seed, global random state is left alone.

        Raises PromptError for a prompt that is empty or fills the context, OptionError for a limit below one.
        """
        if not requests:
            return []
        self._check_open()
        limits = [check_max_new_tokens(r, index, self.context_length, self.name) for index, r in enumerate(requests)]
        layers = {layer for request in requests for layer in request.layers}
        with ExitStack() as stack:
            hooks = self._install_hooks(stack, requests, layers)
            decoder = BatchDecoder(
                [request.watcher for request in requests],
                limits,
                [request.temperature for request in requests],
                sink,
                any(request.signals for request in requests),
                hooks,
                isolated=any(not isinstance(hook, SignalsHook) for hook in hooks),
                inverse_cdf=sampling.inverse_cdf,
            )
            ids, mask = self.pad([request.prompt_ids for request in requests])
            config = self._generation_config(sampling, max(limits))
            with _seeded(sampling.seed):
                self.model.generate(ids, attention_mask=mask, generation_config=config, custom_generate=decoder)
        return [sequence.completion() for sequence in decoder.sequences]

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> list[State]:
        self._check_open()
        ids, mask = self.pad(prompts)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in signature(self.model.forward).parameters:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        with closing(HiddenStates(self.model, {layer})) as states, torch.no_grad():
            self.model(**inputs, use_cache=False)
            return [states.read(layer, row) for row in range(len(prompts))]

    def _check_open(self) -> None:
        if self.model is None:
            raise ModelError(f"the engine {self.name!r} was closed; load it again", code="engine_closed")

    def _install_hooks(self, stack: ExitStack, requests: Sequence[Request], layers: set[int]) -> list[StepHook]:
        """Everything that follows the decoding: signals, hidden states, and modifiers of the forward pass."""
        hooks: list[StepHook] = []
        if any(request.signals for request in requests):
            hooks.append(SignalsHook(any(request.confidence for request in requests)))
        if layers:
            hooks.append(stack.enter_context(closing(HiddenStates(self.model, layers))))
        attached = [{m.modifier: m for m in request.modifiers} for request in requests]
        for modifier in dict.fromkeys(modifier for by_modifier in attached for modifier in by_modifier):
            sequences = [by_modifier.get(modifier) for by_modifier in attached]
            hooks.append(stack.enter_context(modifier.install(self.model, sequences)))
        return hooks

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            from ....probes.fingerprint import fingerprint

            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def close(self) -> None:
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Stack prompts, padded on the left with id 0: ids and mask, both [prompts, length]."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generation_config(self, sampling: SamplingParams, max_new_tokens: int) -> Any:
        """The model's own defaults, overridden by the options."""
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
            # The model's own values would make transformers warn that greedy decoding ignores them.
            config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
        return config


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed all generators for a while, then restore them; None does nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def load_engine(
    model: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    *,
    grouped: bool = False,
) -> TransformersEngine:
    """Load an embedded model by name, a folder, or a model of the Hugging Face hub.

    Raises ModelError if the model does not exist, is not a causal language model, or has no tokenizer; OptionError for
    a dtype or device that is not there.

    Args:
        dtype: "auto" (as saved), or torch's or its name, such as "bfloat16".
        device: None uses a GPU if there is one.
        grouped: on a CPU, read keys once for all heads that share them. Faster, but it sums in another order, so not
            every token is the one that transformers gives.
    """
    if not isinstance(model, str | os.PathLike):
        raise OptionError(f"model is a {type(model).__name__}; accepted: a name or folder", code="invalid_model")
    name, wanted = os.fspath(model), str(dtype).removeprefix("torch.")
    kind = wanted if wanted == "auto" else getattr(torch, wanted, None)
    if kind != "auto" and not isinstance(kind, torch.dtype):
        raise unknown("dtype", wanted, ("auto", "float32", "bfloat16", "float16"))
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=target)
    except (AssertionError, RuntimeError, TypeError) as error:  # unknown, not in this machine or in this torch
        reason = str(error).partition("\n")[0]
        raise OptionError(
            f"device {device!r} cannot be used: {reason}; accepted: cpu, cuda, cuda:1 and so on; None finds one",
            code="invalid_device",
        ) from None
    place, config = load_config(name)
    if str((getattr(config, "quantization_config", None) or {}).get("quant_method")).startswith("tersely"):
        from ....kernels import quantization  # noqa: F401 - registers the format of `tersely quantize` with transformers
    tokenizer = load_tokenizer(name, place)
    weights = load_or_raise(name, "weights", lambda: AutoModelForCausalLM.from_pretrained(place, dtype=kind))
    weights = weights.to(target).eval()
    if grouped:
        use_grouped(weights)
    return TransformersEngine(weights, tokenizer, name=name)


def reading_dtype() -> str:
    """The dtype in which a model reads fastest: float32 on a CPU without instructions for bfloat16, else as saved.

    Such a CPU reads a prompt in bfloat16 a fourth as fast. It decodes as fast, with half of the memory.
    """
    cpu: Any = torch.cpu
    if torch.cuda.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return "auto"
    return "auto" if cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported() else "float32"
