"""The transformers engine: a model and its tokenizer in this process, decoding left-padded batches."""

from __future__ import annotations

import copy
import gc
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, OptionError, PromptError, did_you_mean
from ..pretrained import NAMES, path_of
from .base import Completion, Request, Sampling, TokenSink
from .decode import Decoded, decode_rows
from .stepper import can_be_ragged

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT = 5.0  # seconds
_TOKENIZER_FILES = ("*token*", "vocab.*", "*.model", "merges.txt", "tekken.json")
_REMEDIES = {
    "configuration": "check its config.json",
    "tokenizer": "save one beside the model with tokenizer.save_pretrained(folder)",
    "weights": "check that they are complete and those of a causal language model",
}


class TransformersEngine:
    """Runs a causal language model of transformers; the model's weights are never changed."""

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        self.capabilities = frozenset({"crop", "ragged"}) if can_be_ragged(model) else frozenset[str]()
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
        decoded: list[Decoded] = []

        def run(model: Any, input_ids: Tensor, **prepared: Any) -> Tensor:
            watchers = [request.watcher for request in requests]
            decoded.append(
                decode_rows(model, input_ids, watchers=watchers, max_new_tokens=budgets, sink=sink, **prepared)
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
    place = _locate(name)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = _loaded(name, "configuration", lambda: AutoConfig.from_pretrained(place))
    _check_causal(name, config)
    _check_tokenizer(name, Path(place))
    tokenizer = _loaded(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(place))
    weights = _loaded(name, "weights", lambda: AutoModelForCausalLM.from_pretrained(place, dtype=_dtype(dtype)))
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TransformersEngine(weights.to(target).eval(), tokenizer, name=name)


def _dtype(name: str) -> Any:
    value = getattr(torch, name, None)
    if name != "auto" and not isinstance(value, torch.dtype):
        raise OptionError(f"unknown dtype {name!r}; {did_you_mean(name, ('auto', 'float32', 'bfloat16', 'float16'))}")
    return name if name == "auto" else value


def _locate(name: str) -> str:
    """Return what `from_pretrained` should be given; a hub id only once the hub has said that it exists."""
    if name in NAMES:
        if not path_of(name).is_dir():
            raise ModelError(f"the embedded model {name!r} is not in this installation; install tersely again")
        return str(path_of(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name!r} holds no config.json; give a folder written by save_pretrained")
        return str(folder)
    hint = did_you_mean(name, NAMES)
    if folder.exists():
        raise ModelError(f"{name!r} is a file; give the folder of a model")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(f"there is no folder {name!r}; give a model's folder, a hub id, or an embedded model ({hint})")
    _check_hub(name, hint)
    return name


def _check_hub(name: str, hint: str) -> None:
    """Raise ModelError at once where loading from the hub would fail slowly or obscurely."""
    from huggingface_hub import constants, model_info, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    remedy = f"give a local folder or an embedded model ({hint})"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name!r} is no local folder and not in the hub cache, and offline mode is on; {remedy}")
    try:
        model_info(name, timeout=_HUB_TIMEOUT)
    except GatedRepoError as error:
        raise ModelError(f"{name!r} is gated; ask for access on its page and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name!r} is neither a local folder nor a model of the hub; {remedy}") from error
    except Exception as error:  # no connection, proxy trouble, a malformed reply: all mean the same here
        reason = type(error).__name__
        raise ModelError(f"{name!r} is no local folder and the hub cannot be reached ({reason}); {remedy}") from error


def _check_causal(name: str, config: Any) -> None:
    architectures = list(getattr(config, "architectures", None) or [])
    causal = any("CausalLM" in kind or "LMHead" in kind for kind in architectures) or not architectures
    if config.is_encoder_decoder or not causal:
        what = ", ".join(architectures) or "encoder-decoder"
        raise ModelError(f"{name!r} is not a causal language model ({what}); give one saved as ...ForCausalLM")


def _check_tokenizer(name: str, folder: Path) -> None:
    """Refuse a folder without tokenizer files, for which transformers would make up an empty tokenizer."""
    if folder.is_dir() and not any(found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern)):
        raise ModelError(f"{name!r} holds no tokenizer; {_REMEDIES['tokenizer']}")


def _loaded(name: str, part: str, load: Any) -> Any:
    try:
        return load()
    except OptionError:
        raise
    except Exception as error:  # from_pretrained raises OSError, ValueError, KeyError, ImportError...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the {part} of {name!r} cannot be loaded: {reason}; {_REMEDIES[part]}") from error
