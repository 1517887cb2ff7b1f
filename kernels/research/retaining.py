"""A key-value cache of fixed size that keeps what scores highest: retaining heads (Locret, arXiv 2410.01805).

A unit is one token's key and value in one key-value head of one layer. A small network beside each layer scores it from
what the layer makes of the token, [q, k, v] as projected: score = silu([q, k, v] W1 + b1) W2 + b2, one for each
key-value head. So a score never changes, and needs nothing that comes later. After each forward, the prompt's chunks
and single steps alike, a head keeps the `budget` units of the highest scores; the newest ones, the stabilizers, stay
whatever their scores, for theirs is a guess about what comes, and what is near is mostly needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from ...errors import CapabilityError, OptionError

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
STABILIZERS = 5 / 12
"""Share of the budget that is for the newest units, as in the paper: 2500 of 6000."""

Scorer = Callable[[int, Tensor], Tensor]
"""From a layer's number and what it projected, [rows, tokens, width], to scores [rows, tokens, kv_heads or 1]."""


class RetainingHeads(nn.Module):
    """The scoring networks of all layers; `width` is that of q, k and v together. Implements `Scorer`."""

    def __init__(self, layers: int, width: int, hidden: int, kv_heads: int) -> None:
        super().__init__()
        self.shape = (layers, width, hidden, kv_heads)
        self.fc1 = nn.ModuleList(nn.Linear(width, hidden) for _ in range(layers))
        self.fc2 = nn.ModuleList(nn.Linear(hidden, kv_heads) for _ in range(layers))

    def forward(self, layer: int, projected: Tensor) -> Tensor:
        """Scores [..., kv_heads] of units of a layer, from projected [..., width]; float32."""
        scores: Tensor = self.fc2[layer](nn.functional.silu(self.fc1[layer](projected.float())))
        return scores


@contextmanager
def retaining(model: Any, scorer: Scorer, budget: int, stabilizers: int | None = None) -> Iterator[Cache]:
    """While it lasts, gives a cache for one `model.generate(..., past_key_values=cache)` that holds `budget` units.

    The model attends to what is kept, at the positions where it stood; `prefill_chunk_size` of generate bounds what is
    held for a moment while a prompt is read. With a budget that nothing has to leave for, tokens are those of the full
    cache. stabilizers: None for 5 of 12 units of the budget; as many as the budget keep the newest alone. Raises
    OptionError for a budget or stabilizers out of range, CapabilityError for a model whose layers do not all attend to
    everything by q_proj, k_proj and v_proj, with masks of four dimensions.
    """
    if budget < 1:
        raise OptionError(f"budget is {budget}; accepted: 1 or more units a key-value head")
    if stabilizers is None:
        stabilizers = int(STABILIZERS * budget)
    if not 0 <= stabilizers <= budget:
        raise OptionError(f"stabilizers are {stabilizers}; accepted: 0 to {budget}, the budget")
    modules = attention_modules(model)
    layers = [RetainingLayer(budget, stabilizers) for _ in modules]
    cache = Cache(layers=layers)
    with ExitStack() as stack:
        for index, (module, layer) in enumerate(zip(modules, layers, strict=True)):
            watch = _Watch(layer, partial(scorer, index), cache)
            for handle in watch.hooks(module):
                stack.callback(handle.remove)
        yield cache


def attention_modules(model: Any) -> list[Any]:
    """The attention of each layer, in order; raises CapabilityError as `retaining` does."""
    config = model.config.get_text_config(decoder=True)
    found = [m for m in model.modules() if all(hasattr(m, name) for name in (*PROJECTIONS, "layer_idx"))]
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    if len(found) != config.num_hidden_layers or not plain:
        raise CapabilityError(
            f"{len(found)} of the {config.num_hidden_layers} layers of {type(model).__name__} have "
            f"{', '.join(PROJECTIONS)}{'' if plain else ', and some do not attend to everything'}; accepted: full "
            "attention with these three in every layer"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise CapabilityError(f"attention is {config._attn_implementation}; accepted: 'sdpa' or 'eager'")
    return sorted(found, key=lambda module: module.layer_idx)


class RetainingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of the cache: `keys` and `values` [rows, kv_heads, held, dim], in the order in which they came.

    places: which token of the sequence each unit is of; scores: float32; both [rows, kv_heads, held]. seen: tokens so
    far, kept or not, which is what transformers takes for the cache's length.
    """

    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, budget: int, stabilizers: int) -> None:
        super().__init__()
        self.budget, self.stabilizers, self.seen = budget, stabilizers, 0
        self.places = self.scores = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, kv_heads, new, dim]; `keep` is to follow once they are attended to."""
        rows, kv_heads, new, _ = key_states.shape
        self.places = self.places_with(rows, kv_heads, new, key_states.device)
        self.seen += new
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, values

    def places_with(self, rows: int, kv_heads: int, new: int, device: torch.device) -> Tensor:
        """Places of what is held and of so many new tokens, [rows, kv_heads, held + new]."""
        coming = torch.arange(self.seen, self.seen + new, device=device).expand(rows, kv_heads, new)
        return torch.cat([self.places, coming], dim=-1) if self.seen else coming

    def keep(self, scores: Tensor) -> None:
        """Take the scores of the newest units, [rows, kv_heads, new], -inf for padding; evict down to the budget."""
        self.scores = torch.cat([self.scores, scores], dim=-1) if self.scores.numel() else scores
        if self.scores.shape[-1] <= self.budget:
            return
        near = (self.places >= self.seen - self.stabilizers) & (self.scores > -torch.inf)
        ranked = self.scores.masked_fill(near, torch.inf)
        kept = ranked.topk(self.budget, dim=-1).indices.sort(dim=-1).values
        self.places, self.scores = self.places.gather(-1, kept), self.scores.gather(-1, kept)
        index = kept[..., None].expand(*kept.shape, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, index), self.values.gather(2, index)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what was evicted for the last tokens is gone."""
        raise CapabilityError("a cache that evicts cannot be cropped; read the text anew")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, or copies of them."""
        super().batch_select_indices(indices)
        self.places, self.scores = self.places[indices], self.scores[indices]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.batch_select_indices(torch.arange(len(self.places)).repeat_interleave(repeats))


class _Watch:
    """Stands around one layer's attention: gives it the mask of what is held, then scores what it made, and evicts."""

    def __init__(self, layer: RetainingLayer, score: Callable[[Tensor], Tensor], cache: Cache) -> None:
        self._layer, self._score, self._cache = layer, score, cache
        self._projected: dict[str, Tensor] = {}
        self._padding: Tensor | None = None  # [rows, new]

    def hooks(self, module: Any) -> Iterator[Any]:
        yield module.register_forward_pre_hook(self._before, with_kwargs=True)
        yield module.register_forward_hook(self._after, with_kwargs=True)
        for name in PROJECTIONS:
            yield getattr(module, name).register_forward_hook(partial(self._note, name))

    def _note(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._projected[name] = output.detach()

    def _before(self, module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        mask: Tensor | None = named.get("attention_mask")
        self._padding = None
        if named.get("past_key_values") is not self._cache or mask is None:
            return None
        rows, _, new, columns = mask.shape
        last = mask[:, 0, -1, columns - new :]
        self._padding = ~last if mask.dtype == torch.bool else last < 0
        if not self._layer.seen or self._layer.keys.shape[2] == self._layer.seen:
            return None
        kv_heads = self._layer.keys.shape[1]
        places = self._layer.places_with(rows, kv_heads, new, mask.device)[:, :, None].expand(-1, -1, new, -1)
        own = mask.expand(-1, kv_heads, -1, -1).gather(-1, places)
        return inputs, {**named, "attention_mask": own.repeat_interleave(module.num_key_value_groups, dim=1)}

    def _after(self, module: Any, inputs: Any, named: Mapping[str, Any], output: Any) -> None:
        if named.get("past_key_values") is not self._cache:
            return
        projected = torch.cat([self._projected.pop(name) for name in PROJECTIONS], dim=-1)
        with torch.no_grad():
            scores = self._score(projected).float().transpose(1, 2).expand(-1, self._layer.keys.shape[1], -1)
        if self._padding is not None:
            scores = scores.masked_fill(self._padding[:, None], -torch.inf)
        self._layer.keep(scores)
