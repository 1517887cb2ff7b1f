"""The embedded reasoning models, Qwen3 checkpoints shipped as package data; finding any checkpoint, and its faults.

All is measured on `tersely-tiny-small` and `tersely-tiny-large`; `tersely-tiny-agent` calls tools.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ModelError, OptionError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

NAMES = ("tersely-tiny-small", "tersely-tiny-large", "tersely-tiny-agent")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT = 5.0  # seconds
_TOKENIZER_FILES = ("*token*", "vocab.*", "*.model", "merges.txt", "tekken.json")
_REMEDIES = {
    "configuration": "check its config.json",
    "tokenizer": "save one next to the model with tokenizer.save_pretrained(folder)",
    "weights": "check that they are complete and those of a causal language model",
}


def get_model_path(name: str) -> Path:
    """Return the folder of an embedded model; raises ModelError for an unknown name."""
    if name in NAMES:
        return Path(__file__).parent / name
    raise ModelError(f"no embedded model is called {name!r}; {did_you_mean(name, NAMES)}")


def resolve_checkpoint(name: str) -> str:
    """Return what `from_pretrained` should be given; a hub id only once the hub has said that it exists."""
    if name in NAMES:
        if not get_model_path(name).is_dir():
            raise ModelError(f"the embedded model {name!r} is not in this installation; install tersely again")
        return str(get_model_path(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            remedy = "give a folder written by save_pretrained"
            if (folder / "adapter_config.json").is_file():
                remedy = "it is an adapter: merge it into its model (peft's merge_and_unload) and save that"
            raise ModelError(f"{name!r} holds no config.json; {remedy}")
        return str(folder)
    hint = did_you_mean(name, NAMES)
    if folder.exists():
        raise ModelError(f"{name!r} is a file; give the folder of a model")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(f"folder {name!r} does not exist; give a folder, a hub id, or an embedded model ({hint})")
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
        raise ModelError(f"{name!r} is not a local folder and not in the hub cache, and offline mode is on; {remedy}")
    try:
        model_info(name, timeout=_HUB_TIMEOUT)
    except GatedRepoError as error:
        raise ModelError(f"{name!r} is gated; ask for access on its page and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name!r} is neither a local folder nor a model of the hub; {remedy}") from error
    except Exception as error:  # no connection, proxy trouble, a malformed reply: all mean the same here
        reason = type(error).__name__
        raise ModelError(
            f"{name!r} is not a local folder and the hub cannot be reached ({reason}); {remedy}"
        ) from error


def load_config(name: str) -> tuple[str, Any]:
    """Where a checkpoint lies, and its configuration; raises ModelError unless it is a causal language model."""
    from transformers import AutoConfig

    path = resolve_checkpoint(name)
    config = load_or_raise(name, "configuration", lambda: AutoConfig.from_pretrained(path))
    architectures = list(getattr(config, "architectures", None) or [])
    causal = any("CausalLM" in kind or "LMHead" in kind for kind in architectures) or not architectures
    if config.is_encoder_decoder or not causal:
        what = ", ".join(architectures) or "encoder-decoder"
        raise ModelError(f"{name!r} is not a causal language model ({what}); give one saved as ...ForCausalLM")
    return path, config


def load_tokenizer(name: str, path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; raises ModelError for none, where transformers would make up an empty one."""
    from transformers import AutoTokenizer

    folder = Path(path)
    if folder.is_dir() and not any(found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern)):
        raise ModelError(f"{name!r} holds no tokenizer; {_REMEDIES['tokenizer']}")
    return load_or_raise(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(path))


def load_or_raise(name: str, part: str, load: Callable[[], T]) -> T:
    """What `load` returns; whatever it raises becomes a ModelError that names the part and a remedy."""
    try:
        return load()
    except OptionError:
        raise
    except Exception as error:  # from_pretrained raises OSError, ValueError, KeyError, ImportError...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the {part} of {name!r} cannot be loaded: {reason}; {_REMEDIES[part]}") from error


def list_end_tokens(tokenizer: Any, configured: int | Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that end a turn: the tokenizer's first, then those of a generation config."""
    ids = [tokenizer.eos_token_id, *([configured] if isinstance(configured, int) else configured or ())]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


CACHE_NAMES = ("cache", "past_key_values")  # the keyword of the cache in newer and older transformers


def find_cache(values: Any) -> tuple[str | None, Any]:
    """The name and value of the cache among keyword arguments or model outputs."""
    for name in CACHE_NAMES:
        if values.get(name) is not None:
            return name, values[name]
    return None, None


def choose_cache_name(known: Container[str]) -> str:
    """The name of the cache among those that are known; the older one where neither is."""
    return next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[-1])


def as_cache(model: Any, cache: Any) -> dict[str, Any]:
    """A cache as the keyword argument that this model's `forward` and `generate` take."""
    return {choose_cache_name(inspect.signature(model.forward).parameters): cache}
