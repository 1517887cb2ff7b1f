"""Latent thoughts, and shortcuts through depth and steps of them (System-1.5 Reasoning, arXiv 2505.18962).

The paper has no public code; equations are those of descriptions of it. A latent thought is the last state of a step,
fed back in as the input of the next one (as in Coconut, arXiv 2412.06769). With shortcuts, each layer l has a router R
and an adapter g, those of `probes.research.learned.Shortcut`, and w = R_l(h_{l-1,t}) is shared by both shortcuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from ...controller.engines.transformers.research.early_exit import apply_adapter, score
from ...errors import ModelError
from ...models import as_cache

Parts = Mapping[str, Tensor]
"""Adapter and router of a layer; those of layer 0 are of the inputs, and its router is not used."""


def mix(vertical: Tensor, horizontal: Tensor, full: Tensor, weight: Tensor) -> Tensor:
    """The state of a layer in training: both shortcuts by the router's weight w, the layer itself by 1 - w (eq. 5)."""
    return (vertical + horizontal) * weight + full * (1 - weight)


def exit_weights(layers: int, critical: Tensor) -> Tensor:
    """The weights of the early-exit loss (eq. 11), [..., layers], 1 in total, from which thoughts are critical.

    They fall linearly with depth for thoughts that are not critical, which so leave early, and rise for critical ones.
    Descriptions of the paper disagree on the direction; this one has the effect that all of them describe.
    """
    rising = torch.arange(1, layers + 1) / (layers * (layers + 1) / 2)
    return torch.where(critical[..., None], rising, rising.flip(0))


def early_exit_loss(states: Tensor, full: Tensor, weights: Tensor) -> Tensor:
    """Squared distance of the states of all layers to the full path's last one, weighted by layer (eq. 10).

    `states` [rows, thoughts, layers, width], `full` [rows, thoughts, width], `weights` [rows, thoughts, layers].
    """
    distance = (states - full[:, :, None]).square().mean(-1)
    return (weights * distance).sum(-1).mean()


class Route:
    """What each layer does in one latent step; a callable for `run_layers`.

    Without a threshold, as in training, layers mix (`mix`). With one (lambda_depth), a thought exits at the first layer
    with w above it (eq. 3 and 5): its state is what the adapters make of the state below and of the previous thought's
    state at this layer (the step shortcut), which those above take over. Layers from there on are not needed; this code
    computes and drops them, and `computed` leaves them out.
    """

    def __init__(self, shortcuts: Sequence[Parts], previous: Sequence[Tensor], threshold: float | None = None) -> None:
        """`previous` has the states of the previous thought, or of the prompt's last token, of layers 0 to L."""
        self.shortcuts, self.previous, self.threshold = shortcuts, previous, threshold
        self._left = torch.zeros_like(previous[0][..., :1], dtype=torch.bool)
        self.computed = torch.zeros(len(previous[0]), device=previous[0].device)  # layers of each row

    def __call__(self, layer: int, below: Tensor, full: Tensor) -> Tensor:
        weight = torch.sigmoid(score(self.shortcuts[layer], below))[..., None]
        vertical = apply_adapter(self.shortcuts[layer - 1], below)
        horizontal = apply_adapter(self.shortcuts[layer], self.previous[layer])
        if self.threshold is None:
            return mix(vertical, horizontal, full, weight)
        leaving = weight > self.threshold
        state = torch.where(self._left, below, torch.where(leaving, vertical + horizontal, full))
        self._left = self._left | leaving
        self.computed = self.computed + (~self._left).flatten()
        return state


def run_layers(model: Any, inputs: Tensor, valid: Tensor, cache: Any, route: Route | None = None) -> list[Tensor]:
    """The states of layers 0 (the inputs) to L, before the last norm, each [rows, positions, width].

    `inputs` are the last positions of `valid`, [rows, all positions], which says what is not padding. Keys and values
    of a layer come from the state below it, whichever way that was made.
    """
    if model.config._attn_implementation != "sdpa":  # others read the mask in another way
        raise ModelError(
            f"attention is {model.config._attn_implementation!r}; accepted: 'sdpa'", code="wrong_attention"
        )
    decoder, new, total = model.get_decoder(), inputs.shape[1], valid.shape[1]
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)[:, total - new :]
    causal = torch.ones(new, total, dtype=torch.bool, device=valid.device).tril(total - new)
    itself = causal & ~causal.tril(total - new - 1)  # padding sees itself, as a row without keys would be NaN
    mask = (causal & valid[:, None, None, :]) | itself
    rotary, states = decoder.rotary_emb(inputs, positions), [inputs]
    kept = [as_cache(block, cache) for block in decoder.layers]  # its name differs between releases of transformers
    for layer, block in enumerate(decoder.layers, 1):
        full = block(states[-1], attention_mask=mask, position_embeddings=rotary, use_cache=True, **kept[layer - 1])
        states.append(full if route is None else route(layer, states[-1], full))
    return states


class LatentThinking(NamedTuple):
    """Prompts that were read, and the latent thoughts after them."""

    cache: Any
    valid: Tensor  # which positions are not padding, [rows, positions]
    states: Tensor  # of thoughts, after each layer and the last norm, [rows, thoughts, layers, width]
    computed: Tensor  # layers of each row, over all thoughts


def think(
    model: Any,
    ids: Tensor,
    valid: Tensor,
    thoughts: int,
    shortcuts: Sequence[Parts] = (),
    threshold: float | None = None,
) -> LatentThinking:
    """Read left-padded prompts, [rows, positions], and think; shortcuts without a threshold are mixed."""
    decoder, cache = model.get_decoder(), DynamicCache(config=model.config)
    before = [state[:, -1:] for state in run_layers(model, model.get_input_embeddings()(ids), valid, cache)]
    found, computed = [], torch.zeros(len(ids), device=ids.device)
    for _ in range(thoughts):
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        route = Route(shortcuts, before, threshold) if shortcuts else None
        before = run_layers(model, decoder.norm(before[-1]), valid, cache, route)
        found.append(decoder.norm(torch.stack(before[1:], dim=2)))
        computed += len(decoder.layers) if route is None or threshold is None else route.computed
    return LatentThinking(cache, valid, torch.cat(found, dim=1), computed)
