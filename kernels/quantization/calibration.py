"""What the inputs of layers look like on sample text, and where such text comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import OptionError

_TOGETHER = 8  # rows of text in one pass
_STRIPE = 512  # inputs whose products with those after them are made at a time


class Inputs:
    """What one layer was given: sums of products, within groups or of all inputs, and the highest of each input.

    In the sums each token counts alike, whatever its norm: a few tokens with huge activations, such as the first one,
    would otherwise be all that is looked at.
    """

    def __init__(self, inputs: int, size: int, *, whole: bool = False) -> None:
        self.size, self.whole = size, whole
        self.sums = torch.zeros(inputs, inputs) if whole else torch.zeros(-(-inputs // size), size, size)
        self.highest = torch.zeros(inputs)

    def add(self, x: Tensor) -> None:
        """Take account of activations [..., inputs]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(rows):
            return
        self.highest = torch.maximum(self.highest, rows.abs().amax(dim=0).cpu())
        rows = F.normalize(rows, dim=1)
        if self.whole:
            for start in range(0, len(self.sums), _STRIPE):  # one half of them; the other mirrors it
                stripe = rows[:, start : start + _STRIPE]
                self.sums[start : start + _STRIPE, start:] += (stripe.T @ rows[:, start:]).cpu()
        else:
            rows = F.pad(rows, (0, -rows.shape[1] % self.size)).unflatten(1, (-1, self.size))
            self.sums += torch.einsum("tgi,tgj->gij", rows, rows).cpu()

    def complete(self) -> None:
        """Call it once all activations are there, and before the sums are used."""
        if self.whole:
            self.sums = self.sums.triu() + self.sums.triu(1).T

    def scaled(self, scale: Tensor | None) -> Inputs:
        """The same as it is when inputs are multiplied by `scale` first."""
        if scale is None:
            return self
        made = copy(self)
        made.highest = self.highest * scale
        if not self.whole:
            scale = F.pad(scale, (0, -len(scale) % self.size)).unflatten(0, (-1, self.size))
        made.sums = self.sums * scale[..., :, None] * scale[..., None, :]
        return made

    def within_groups(self) -> Inputs:
        """The same without what inputs of different groups have in common."""
        if not self.whole:
            return self
        made = copy(self)
        more = -len(self.sums) % self.size
        blocks = F.pad(self.sums, (0, more, 0, more)).unflatten(0, (-1, self.size)).unflatten(2, (-1, self.size))
        made.sums, made.whole = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous(), False
        return made


@contextmanager
def watched(layers: dict[str, nn.Linear], size: int, *, whole: bool = False) -> Iterator[dict[str, Inputs]]:
    """Collect what layers are given while the context lasts; whole: see `Inputs`."""
    seen = {name: Inputs(layer.in_features, size, whole=whole) for name, layer in layers.items()}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, inputs=seen[name]: inputs.add(args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for inputs in seen.values():
            inputs.complete()


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Let plain linear layers multiply in float32 on a CPU: without bfloat16 arithmetic that is ten times faster.

    It is the same everywhere, and takes a copy of one layer at a time.
    """

    def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(x.float(), layer.weight.float(), bias).to(x.dtype)

    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.device.type == "cpu"]
    for layer in layers:
        layer.forward = partial(multiply, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.inference_mode()
def read(model: Any, rows: Tensor) -> float:
    """Let a model read token rows [rows, length]; returns the perplexity of each token after the first."""
    total, count = 0.0, 0
    with _in_float32(model):
        for part in rows.to(model.device).split(_TOGETHER):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            for row, ids in zip(logits, part[:, 1:], strict=True):
                total += F.cross_entropy(row.float(), ids, reduction="sum").item()
                count += len(ids)
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def rows_of(file: Path, tokenizer: Any, count: int, length: int) -> Tensor:
    """Up to `count` rows of `length` tokens from a text file, or from all texts of a JSONL; int64 [rows, length].

    They are spread over the whole file. Raises OptionError if it cannot be read or is too short for two rows.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            text = "\n\n".join(_texts(json.loads(line)) for line in text.split("\n") if line.strip())
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read: {error}; accepted: a text in UTF-8, or a JSONL of objects") from None
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    found = len(ids) // length
    if found < 2:
        raise OptionError(
            f"{file} has {len(ids)} tokens; accepted: at least {2 * length}, for two rows of {length}; give a longer "
            "file, or a smaller --length"
        )
    rows = ids[: found * length].view(found, length)
    return rows[torch.linspace(0, found - 1, min(count, found)).round().long()]


def _texts(item: Any) -> str:
    if not isinstance(item, dict):
        raise ValueError(f"a line is {type(item).__name__}, not an object")
    return "\n".join(value for value in item.values() if isinstance(value, str))


@torch.inference_mode()
def written_by(model: Any, count: int, length: int, seed: int) -> Tensor:
    """Rows that a model samples itself, each from a random first token; int64 [count, length].

    Nothing else is needed then, and it is what a reasoning model reads most: its own text.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = torch.randint(vocabulary, (count, 1))
        cache: Any = None
        for _ in range(length - 1):
            out = model(input_ids=ids[:, -1:] if cache is not None else ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            chances = out.logits[:, -1].float().softmax(dim=-1)
            ids = torch.cat((ids, torch.multinomial(chances, 1)), dim=1)
    return ids
