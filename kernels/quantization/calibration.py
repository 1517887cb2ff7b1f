"""Statistics of a model on text: inputs of its layers, perplexity, and KL divergence from the unquantized model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from math import exp
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BATCH = 8  # rows of text per forward pass
_STRIPE = 512  # inputs whose products with later inputs are computed at once
_TOP_TOKENS = 64  # tokens per position whose probabilities are stored; the rest count as one


class Inputs:
    """Statistics of the inputs of one layer, in which every token has the same weight, whatever its norm.

    `gram` are sums of products of all inputs, [inputs, inputs], if `full`, or else within groups, [groups, size, size].
    """

    def __init__(self, inputs: int, size: int, *, full: bool = False) -> None:
        self.size, self.full = size, full
        self.gram = torch.zeros(inputs, inputs) if full else torch.zeros(-(-inputs // size), size, size)
        self.highest = torch.zeros(inputs)  # the largest magnitude of each input

    def add(self, x: Tensor) -> None:
        """Add activations [..., inputs]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(rows):
            return
        self.highest = torch.maximum(self.highest, rows.abs().amax(dim=0).cpu())
        rows = F.normalize(rows, dim=1)
        if self.full:
            for start in range(0, len(self.gram), _STRIPE):  # the upper triangle; `finish` mirrors it
                stripe = rows[:, start : start + _STRIPE]
                self.gram[start : start + _STRIPE, start:] += (stripe.T @ rows[:, start:]).cpu()
        else:
            rows = F.pad(rows, (0, -rows.shape[1] % self.size)).unflatten(1, (-1, self.size))
            self.gram += torch.einsum("tgi,tgj->gij", rows, rows).cpu()

    def finish(self) -> None:
        """Call after the last `add`, before `gram` is used."""
        if self.full:
            self.gram = self.gram.triu() + self.gram.triu(1).T

    def scaled(self, scale: Tensor | None) -> Inputs:
        """The statistics of the inputs times `scale`."""
        if scale is None:
            return self
        result = copy(self)
        result.highest = self.highest * scale
        if not self.full:
            scale = F.pad(scale, (0, -len(scale) % self.size)).unflatten(0, (-1, self.size))
        result.gram = self.gram * scale[..., :, None] * scale[..., None, :]
        return result


@contextmanager
def capture_inputs(layers: dict[str, nn.Linear], size: int, *, full: bool = False) -> Iterator[dict[str, Inputs]]:
    """Collect the inputs of layers while the context lasts; size, full: see `Inputs`."""
    captured = {name: Inputs(layer.in_features, size, full=full) for name, layer in layers.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, args, inputs=captured[name]: inputs.add(args[0]))
            stack.enter_context(hook)
        yield captured
    for inputs in captured.values():
        inputs.finish()


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Make plain linear layers on any CPU compute in float32: ten times faster on those without bfloat16 arithmetic."""

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
def iterate_logits(model: Any, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a model on token rows [rows, length]; yields logits [length - 1, vocabulary] and the next tokens."""
    with _in_float32(model):
        for part in rows.to(model.device).split(_BATCH):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            yield from zip(map(Tensor.float, logits), part[:, 1:], strict=True)


def perplexity(model: Any, rows: Tensor) -> float:
    """The perplexity of a model on token rows [rows, length], without the first token of each."""
    return exp(fmean(F.cross_entropy(logits, ids).item() for logits, ids in iterate_logits(model, rows)))


def cache_reference(model: Any, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Record a model's next-token distributions on token rows [rows, length], for `kl_to_reference`.

    Returns `tokens`, int32 [rows, length - 1, top], the likeliest ones, with their log-probabilities `chances` in
    float32; and a dictionary with the `perplexity`.
    """
    tokens, log_probs, losses = [], [], []
    for logits, ids in iterate_logits(model, rows):
        all_log_probs = logits.log_softmax(-1)
        top = all_log_probs.topk(min(_TOP_TOKENS, all_log_probs.shape[-1]))
        tokens.append(top.indices.int().cpu())
        log_probs.append(top.values.cpu())
        losses.append(F.nll_loss(all_log_probs, ids).item())
    return {"tokens": torch.stack(tokens), "chances": torch.stack(log_probs)}, {"perplexity": exp(fmean(losses))}


def kl_to_reference(model: Any, rows: Tensor, reference: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """KL divergence, in nats per token, of a model from `cache_reference` on the same rows, and its loss; by rows.

    All but the likeliest tokens count as one, so this is a close lower bound.
    """
    divergences, losses = [], []
    for (logits, ids), tokens, expected in zip(
        iterate_logits(model, rows), reference["tokens"], reference["chances"], strict=True
    ):
        all_log_probs = logits.log_softmax(-1)
        actual = all_log_probs.gather(1, tokens.long().to(all_log_probs.device)).cpu()
        top = (expected.exp() * (expected - actual)).sum(-1)
        rest, actual_rest = _log_rest(expected), _log_rest(actual)
        divergences.append((top + rest.exp() * (rest - actual_rest)).mean().item())
        losses.append(F.nll_loss(all_log_probs, ids).item())
    return divergences, losses


def _log_rest(log_probs: Tensor) -> Tensor:
    """The log-probability of all other tokens, given log-probabilities [positions, top]."""
    return torch.log((1 - log_probs.double().exp().sum(-1)).clamp(min=1e-9)).float()
