"""One output head per objective on a shared trunk, and their mixtures, which are ordinary models (MAH-DPO).

The weighted sum of the heads' logits equals the logits of the sum of their weights, so a mixture costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import ModelError, OptionError, unknown
from ...io import check_new_folder
from ..training_run import write_model

FILE = "heads.safetensors"
_ACCEPTED = (
    "accepted: the model in the folder `model` that `tersely train mahdpo` wrote, loaded by "
    "AutoModelForCausalLM.from_pretrained(folder)"
)


class Heads(nn.Module):
    """Replaces a model's head: one copy per objective, of which one is active."""

    bias = None

    def __init__(self, weight: Tensor, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.active = tuple(names), 0
        self.heads = nn.ParameterList(nn.Parameter(weight.detach().clone()) for _ in names)

    @property
    def weight(self) -> nn.Parameter:
        """The weights of the active head, [vocabulary, hidden]."""
        weight: nn.Parameter = self.heads[self.active]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the active head."""
        return F.linear(x, self.weight)


def install_heads(model: Any, names: Sequence[str]) -> Heads:
    """Give a model one head per objective; raises ModelError unless its own head is a plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise ModelError(
            f"the model's head is {type(head).__name__}; accepted: a linear layer without a bias",
            code="unsupported_head",
        )
    heads = Heads(head.weight, names)
    _replace_head(model, heads)
    return heads


def save_heads(model: Any, heads: Heads, folder: Path) -> None:
    """Write the heads into the folder of the model, and give the model their mean as its only head."""
    weights = {name: w.detach().cpu().contiguous() for name, w in zip(heads.names, heads.heads, strict=True)}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    mean = mix_heads(weights, dict.fromkeys(weights, 1.0))
    head = nn.Linear(mean.shape[1], mean.shape[0], bias=False, dtype=mean.dtype)
    head.weight = nn.Parameter(mean)
    _replace_head(model, head)


def load_heads(folder: Path | str) -> dict[str, Tensor]:
    """Load the heads of a model that `tersely train mahdpo` wrote; raises ModelError."""
    try:
        return load_file(Path(folder) / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot read heads from {folder} ({error}); accepted: the folder `model` of `tersely train mahdpo`",
            code="no_heads",
        ) from None


def mix_heads(heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted mean of heads, [vocabulary, hidden], with weight 0 where none is given; raises OptionError."""
    shares = _normalise_weights(heads, weights)
    mixed = sum((heads[name].float() * share for name, share in shares.items()), torch.zeros(()))
    return mixed.to(next(iter(heads.values())).dtype)


def set_head_weights(model: Any, heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Set the head of a loaded model to a mixture of these heads, in place; raises ModelError if they do not fit."""
    weight = _get_head_weight(model)
    for name, head in heads.items():
        if head.shape != weight.shape:
            sizes = (" x ".join(map(str, w.shape)) for w in (head, weight))
            raise ModelError(
                f"the head of {name!r} is {next(sizes)} and that of the model {next(sizes)} (vocabulary x hidden), so "
                f"they belong to different models; {_ACCEPTED}",
                code="other_model",
            )
    with torch.no_grad():
        weight.copy_(mix_heads(heads, weights))


def blend(
    model: Annotated[Path, typer.Argument(help="The folder `model` of `tersely train mahdpo`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    weight: Annotated[
        list[str], typer.Option("--weight", metavar="NAME=WEIGHT", help="Weight of an objective; may be repeated.")
    ],
) -> None:
    """Mix the heads of a model by weights of their objectives into an ordinary model (MAH-DPO)."""
    weights: dict[str, float] = {}
    for given in weight:
        name, _, value = given.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise OptionError(f"--weight is {given!r}; accepted: NAME=WEIGHT, as in accuracy=1") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    heads = load_heads(model)
    _normalise_weights(heads, weights)
    check_new_folder(out)
    mixed: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    set_head_weights(mixed, heads, weights)
    write_model(mixed, AutoTokenizer.from_pretrained(model), out)
    print(f"saved to {out}")


def _normalise_weights(heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
    """Scale weights to a sum of 1."""
    for name, weight in weights.items():
        if name not in heads:
            raise unknown("objective", name, sorted(heads))
        if not 0 <= weight < math.inf:
            raise OptionError(
                f"the weight of objective {name!r} is {weight!r}; accepted: a number of at least 0",
                code="invalid_weight",
            )
    total = sum(weights.values())
    if not total > 0:
        raise OptionError(
            f"all weights are 0; accepted: a positive weight for at least one of {', '.join(sorted(heads))}",
            code="invalid_weight",
        )
    return {name: weight / total for name, weight in weights.items()}


def _get_head_weight(model: Any) -> Tensor:
    """The head's weights, [vocabulary, hidden]; raises ModelError if the embeddings share them."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"{type(model).__name__} does not have a single matrix as its head; {_ACCEPTED}", code="unsupported_head"
        )
    embeddings = getattr(model.get_input_embeddings(), "weight", None)
    if isinstance(embeddings, Tensor) and embeddings.data_ptr() == weight.data_ptr():
        raise ModelError(
            "the model's head is tied to its input embeddings, which changing its weights would change as well; "
            f"{_ACCEPTED}",
            code="tied_head",
        )
    return weight


def _replace_head(model: Any, head: nn.Module) -> None:
    """Replace a model's head by one that is not tied to the embeddings."""
    model.set_output_embeddings(head)
    config = model.config.get_text_config(decoder=True)
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
