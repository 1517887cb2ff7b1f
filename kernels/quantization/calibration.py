"""What the inputs of layers look like on sample text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from math import exp
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
def capture_inputs(layers: dict[str, nn.Linear], size: int, *, whole: bool = False) -> Iterator[dict[str, Inputs]]:
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
def passes(model: Any, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Let a model read token rows [rows, length]; of each its logits [length - 1, vocabulary] and what followed."""
    with _in_float32(model):
        for part in rows.to(model.device).split(_TOGETHER):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            yield from zip(map(Tensor.float, logits), part[:, 1:], strict=True)


def read(model: Any, rows: Tensor) -> float:
    """Let a model read token rows [rows, length]; returns the perplexity of each token after the first."""
    losses = [F.cross_entropy(logits, ids).item() for logits, ids in passes(model, rows)]
    return exp(fmean(losses))
