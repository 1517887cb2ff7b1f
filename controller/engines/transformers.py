"""The transformers engine: a model and its tokenizer in this process, decoding left-padded batches."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelError, OptionError, PromptError, did_you_mean
from .base import Completion, Request, Sampling, TokenSink
from .checkpoints import check_causal, check_tokenizer, loaded, locate
from .decode import Decoded, decode_rows
from .stepper import can_be_ragged


class TransformersEngine:
    """Runs a causal language model of transformers; the model's weights are never changed."""

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        self.capabilities = frozenset({"signals", *(("crop", "ragged") if can_be_ragged(model) else ())})
        length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.context_length: int | None = length

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests as one batch, in order; global random state is left alone when a seed is given.

        Raises PromptError for a prompt that is empty or fills the context, OptionError for a limit below one.
        """
        if not requests:
            return []
        if self.model is None:
            raise ModelError(f"the engine {self.name!r} was closed; load it again")
        budgets = [self._budget(row, request) for row, request in enumerate(requests)]
        measured = any(request.signals for request in requests)
        decoded: list[Decoded] = []

        def run(model: Any, input_ids: Tensor, **prepared: Any) -> Tensor:
            watchers = [request.watcher for request in requests]
            decoded.append(
                decode_rows(
                    model,
                    input_ids,
                    watchers=watchers,
                    max_new_tokens=budgets,
                    sink=sink,
                    measured=measured,
                    **prepared,
                )
            )
            return input_ids

        ids, mask = self._padded([request.prompt_ids for request in requests])
        config = self._generation_config(sampling, max(budgets))
        with _seeded(sampling.seed):
            self.model.generate(ids, attention_mask=mask, generation_config=config, custom_generate=run)
        return [row.completion() for row in decoded[0].rows]

    def close(self) -> None:
        """Free the model."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _budget(self, row: int, request: Request) -> int:
        """The tokens a row may put out: what was asked for, as far as the context holds it."""
        if request.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens of request {row} is {request.max_new_tokens}; give at least 1")
        if not request.prompt_ids:
            raise PromptError(f"the prompt of request {row} is empty; give at least one token")
        if self.context_length is None:
            return request.max_new_tokens
        room = self.context_length - len(request.prompt_ids)
        if room < 1:
            raise PromptError(
                f"the prompt of request {row} has {len(request.prompt_ids)} tokens and {self.name!r} takes "
                f"{self.context_length} in all; shorten it"
            )
        return min(request.max_new_tokens, room)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Stack prompts, padded on the left: ids and mask, both [rows, length]."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generation_config(self, sampling: Sampling, max_new_tokens: int) -> Any:
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


def load_engine(model: str | os.PathLike[str], dtype: str = "auto", device: str | None = None) -> TransformersEngine:
    """Load an embedded model by name, a folder, or a model of the Hugging Face hub.

    `dtype` is "auto" (as saved) or a torch name such as "bfloat16"; `device` None takes a GPU where there is one.
    Raises ModelError when there is no such model, it is not a causal language model, or it lacks a tokenizer.
    """
    name = os.fspath(model)
    place = locate(name)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = loaded(name, "configuration", lambda: AutoConfig.from_pretrained(place))
    check_causal(name, config)
    check_tokenizer(name, Path(place))
    tokenizer = loaded(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(place))
    weights = loaded(name, "weights", lambda: AutoModelForCausalLM.from_pretrained(place, dtype=_dtype(dtype)))
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TransformersEngine(weights.to(target).eval(), tokenizer, name=name)


def _dtype(name: str) -> Any:
    value = getattr(torch, name, None)
    if name != "auto" and not isinstance(value, torch.dtype):
        raise OptionError(f"unknown dtype {name!r}; {did_you_mean(name, ('auto', 'float32', 'bfloat16', 'float16'))}")
    return name if name == "auto" else value
