"""Heads of several objectives on one model, of which a mixture makes an ordinary model again.

MAH-DPO (Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards) adds up the heads' logits
with weights that are chosen at inference. Heads are linear, so the sum of logits is what the sum of weights gives: a
mixture is one matrix, costs nothing at decoding, and runs on any engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import ModelError, OptionError, unknown
from ...io import check_new_folder
from ..saving import write_model

FILE = "heads.safetensors"
_ACCEPTED = (
    "accepted: the model in the folder `model` that `tersely train mahdpo` wrote, loaded by "
    "AutoModelForCausalLM.from_pretrained(folder)"
)


class Heads(nn.Module):
    """In the place of a model's head: one for each objective, all as it was at first, of which one is in use."""

    bias = None

    def __init__(self, weight: Tensor, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.used = tuple(names), 0
        self.each = nn.ParameterList(nn.Parameter(weight.detach().clone()) for _ in names)

    @property
    def weight(self) -> nn.Parameter:
        """The weights of the head in use, [vocabulary, hidden]."""
        weight: nn.Parameter = self.each[self.used]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the head in use."""
        return F.linear(x, self.weight)


def put_heads(model: Any, names: Sequence[str]) -> Heads:
    """Give a model a head for each objective; raises ModelError for one whose head is no plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise ModelError(f"the model's head is {type(head).__name__}; accepted: a linear layer without a bias")
    made = Heads(head.weight, names)
    _replace(model, made)
    return made


def close_heads(model: Any, heads: Heads, folder: Path) -> None:
    """Write the heads into the folder where the model is going to be, and leave it with all of them alike."""
    found = {name: weight.detach().cpu().contiguous() for name, weight in zip(heads.names, heads.each, strict=True)}
    save_file(found, folder / FILE, metadata={"format": "pt"})
    _replace(model, _linear(mix_heads(found, dict.fromkeys(found, 1.0))))


def read_heads(folder: Path | str) -> dict[str, Tensor]:
    """The heads of a model that `tersely train mahdpo` wrote; raises ModelError."""
    try:
        return load_file(Path(folder) / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder} has no heads that can be read ({error}); accepted: the folder `model` of `tersely train mahdpo`"
        ) from None


def mix_heads(heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The mean of heads by weights of 0 and more, [vocabulary, hidden]; those that are not named weigh 0.

    Raises OptionError for an objective that there is not, and for weights that are no shares.
    """
    shares = _shares(heads, weights)
    made = sum((heads[name].float() * share for name, share in shares.items()), torch.zeros(()))
    return made.to(next(iter(heads.values())).dtype)


def weigh_heads(model: Any, heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Have a loaded model decode by other weights from now on; see `mixed`.

    Raises ModelError for a model whose head these heads cannot take the place of.
    """
    weight = _own_weight(model)
    for name, head in heads.items():
        if head.shape != weight.shape:
            shapes = f"the head of {name!r} is {_sizes(head)} and that of the model {_sizes(weight)}"
            raise ModelError(f"{shapes} (vocabulary x hidden): they are of two models; {_ACCEPTED}")
    with torch.no_grad():
        weight.copy_(mix_heads(heads, weights))


def blend_into(folder: Path, out: Path, weights: Mapping[str, float]) -> None:
    """Write a model with its heads mixed by weights into a new folder; raises ModelError, OptionError, WriteError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    heads = read_heads(folder)
    _shares(heads, weights)
    check_new_folder(out)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    weigh_heads(model, heads, weights)
    write_model(model, AutoTokenizer.from_pretrained(folder), out)


def _shares(heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that add up to 1; see `mixed`."""
    for name, weight in weights.items():
        if name not in heads:
            raise unknown("objective", name, sorted(heads))
        if not isinstance(weight, Real) or isinstance(weight, bool) or not 0 <= weight < math.inf:
            raise OptionError(f"objective {name!r} weighs {weight!r}; accepted: a number, 0 and more")
    total = sum(weights.values())
    if not total > 0:
        raise OptionError(f"all objectives weigh 0; accepted: at least one of {', '.join(sorted(heads))} above 0")
    return {name: weight / total for name, weight in weights.items()}


def _own_weight(model: Any) -> Tensor:
    """The weights of a model's head, [vocabulary, hidden], where nothing else is made of them; raises ModelError."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{type(model).__name__} has no head of one matrix; {_ACCEPTED}")
    embeddings = getattr(model.get_input_embeddings(), "weight", None)
    if isinstance(embeddings, Tensor) and embeddings.data_ptr() == weight.data_ptr():
        raise ModelError(
            "the model's head is its input embedding as well (tied), so that weighing would change what it reads; "
            f"{_ACCEPTED}"
        )
    return weight


def _sizes(weight: Tensor) -> str:
    return " x ".join(map(str, weight.shape))


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    made.weight = nn.Parameter(weight)
    return made


def _replace(model: Any, head: nn.Module) -> None:
    """Put a head of its own, which is no longer the embeddings', into a model."""
    model.set_output_embeddings(head)
    config = model.config.get_text_config(decoder=True)
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
