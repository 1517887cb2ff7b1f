"""A key-value cache of fixed size that evicts low-scoring units: retaining heads (Locret, arXiv:2410.01805).

A unit is one token's key and value in one key-value head of one layer. A small network for each layer scores it from
the token's projections [q, k, v]: score = silu([q, k, v] W1 + b1) W2 + b2, one per key-value head; the authors have no
biases. After each forward pass a head keeps the `budget` units with the highest scores; the newest, the stabilizers,
always stay.

Saved heads are one file, `heads.safetensors`, whose metadata names the base model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from ...errors import CapabilityError, ModelError, OptionError
from ...io import make_folder, write

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
STABILIZERS = 5 / 12  # share of the budget for the newest units, as in the paper: 2500 of 6000
FILE = "heads.safetensors"

Scorer = Callable[[int, Tensor], Tensor]
"""From a layer's index and its projections [rows, tokens, width] to scores [rows, tokens, kv_heads or 1]."""


class RetainingHeads(nn.Module):
    """The scoring networks of all layers, a `Scorer`; `width` is that of q, k and v together."""

    def __init__(self, layers: int, width: int, hidden: int, kv_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.shape, self.bias = (layers, width, hidden, kv_heads), bias
        self.fc1 = nn.ModuleList(nn.Linear(width, hidden, bias) for _ in range(layers))
        self.fc2 = nn.ModuleList(nn.Linear(hidden, kv_heads, bias) for _ in range(layers))

    def forward(self, layer: int, projected: Tensor) -> Tensor:
        """Score units of a layer: float32 [..., kv_heads] from projections [..., width]."""
        scores: Tensor = self.fc2[layer](nn.functional.silu(self.fc1[layer](projected.float())))
        return scores


@contextmanager
def retaining(
    model: Any, scorer: Scorer, budget: int, stabilizers: int | None = None, decoding: bool = True
) -> Iterator[Cache]:
    """Yield a cache of `budget` units per head for one `model.generate(..., past_key_values=cache)`.

    The model attends to the units that are kept, at their original positions; as long as nothing is evicted, tokens are
    those of the full cache. `prefill_chunk_size` of `generate` bounds how many units exist while a prompt is read. The
    newest `stabilizers` always stay, by default 5/12 of the budget; all of it gives a sliding window. With `decoding`
    false, units are evicted while the prompt is read only, as in the authors' code, and what is generated stays; a
    chunk of one token counts as generated. Raises OptionError for a budget or stabilizers out of range, CapabilityError
    for anything but full attention from q_proj, k_proj and v_proj.
    """
    if budget < 1:
        raise OptionError(f"budget is {budget}; accepted: 1 or more units per key-value head")
    if stabilizers is None:
        stabilizers = int(STABILIZERS * budget)
    if not 0 <= stabilizers <= budget:
        raise OptionError(f"stabilizers is {stabilizers}; accepted: 0 to {budget}, the budget")
    modules = attention_modules(model)
    layers = [RetainingLayer(budget, stabilizers, decoding) for _ in modules]
    cache = Cache(layers=layers)
    with ExitStack() as stack:
        for index, (module, layer) in enumerate(zip(modules, layers, strict=True)):
            hooks = _AttentionHooks(layer, partial(scorer, index), cache)
            for handle in hooks.register(module):
                stack.callback(handle.remove)
        yield cache


def attention_modules(model: Any) -> list[Any]:
    """The attention modules of all layers, in order; raises CapabilityError as `retaining` does."""
    config = model.config.get_text_config(decoder=True)
    modules = [m for m in model.modules() if all(hasattr(m, name) for name in (*PROJECTIONS, "layer_idx"))]
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    if len(modules) != config.num_hidden_layers or not plain:
        raise CapabilityError(
            f"{len(modules)} of the {config.num_hidden_layers} layers of {type(model).__name__} have "
            f"{', '.join(PROJECTIONS)}{'' if plain else ', and some do not use full attention'}; accepted: full "
            "attention with these three in every layer"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise CapabilityError(f"attention is {config._attn_implementation}; accepted: 'sdpa' or 'eager'")
    return sorted(modules, key=lambda module: module.layer_idx)


class RetainingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of the cache: `keys` and `values` [rows, kv_heads, units, dim], in their original order.

    Of each unit it holds the token's position and the score, both [rows, kv_heads, units]. `seen` counts all tokens,
    kept or not; transformers uses it as the length of the cache.
    """

    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, budget: int, stabilizers: int, decoding: bool = True) -> None:
        super().__init__()
        self.budget, self.stabilizers, self.decoding, self.seen = budget, stabilizers, decoding, 0
        self.positions = self.scores = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, kv_heads, new, dim]; call `evict` once they were attended to."""
        rows, kv_heads, new, _ = key_states.shape
        self.positions = self.positions_with(rows, kv_heads, new, key_states.device)
        self.seen += new
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, values

    def positions_with(self, rows: int, kv_heads: int, new: int, device: torch.device) -> Tensor:
        """Positions of the cached units and of `new` tokens, [rows, kv_heads, units + new]."""
        added = torch.arange(self.seen, self.seen + new, device=device).expand(rows, kv_heads, new)
        return torch.cat([self.positions, added], dim=-1) if self.seen else added

    def evict(self, scores: Tensor) -> None:
        """Add the scores of the newest units [rows, kv_heads, new], -inf for padding; then evict down to the budget."""
        self.scores = torch.cat([self.scores, scores], dim=-1) if self.scores.numel() else scores
        if self.scores.shape[-1] <= self.budget or (scores.shape[-1] == 1 and not self.decoding):
            return
        near = (self.positions >= self.seen - self.stabilizers) & (self.scores > -torch.inf)
        ranked = self.scores.masked_fill(near, torch.inf)
        kept = ranked.topk(self.budget, dim=-1).indices.sort(dim=-1).values
        self.positions, self.scores = self.positions.gather(-1, kept), self.scores.gather(-1, kept)
        index = kept[..., None].expand(*kept.shape, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, index), self.values.gather(2, index)

    def get_seq_length(self) -> int:
        """The number of tokens seen."""
        return self.seen

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: units that were evicted for the last tokens cannot be restored."""
        raise CapabilityError("a cache that evicts cannot be cropped; run the model on the text again")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows, possibly more than once."""
        super().batch_select_indices(indices)
        self.positions, self.scores = self.positions[indices], self.scores[indices]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.batch_select_indices(torch.arange(len(self.positions)).repeat_interleave(repeats))


class _AttentionHooks:
    """Hooks around one layer's attention: pass in the mask of the cached units, then score the new ones and evict."""

    def __init__(self, layer: RetainingLayer, score: Callable[[Tensor], Tensor], cache: Cache) -> None:
        self._layer, self._score, self._cache = layer, score, cache
        self._projected: dict[str, Tensor] = {}
        self._padding: Tensor | None = None  # [rows, new]

    def register(self, module: Any) -> Iterator[Any]:
        yield module.register_forward_pre_hook(self._before, with_kwargs=True)
        yield module.register_forward_hook(self._after, with_kwargs=True)
        for name in PROJECTIONS:
            yield getattr(module, name).register_forward_hook(partial(self._record, name))

    def _record(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._projected[name] = output.detach()

    def _before(self, module: Any, inputs: Any, kwargs: dict[str, Any]) -> Any:
        mask: Tensor | None = kwargs.get("attention_mask")
        self._padding = None
        if kwargs.get("past_key_values") is not self._cache or mask is None:
            return None
        rows, _, new, columns = mask.shape
        last = mask[:, 0, -1, columns - new :]
        self._padding = ~last if mask.dtype == torch.bool else last < 0
        if not self._layer.seen or self._layer.keys.shape[2] == self._layer.seen:
            return None
        kv_heads = self._layer.keys.shape[1]
        positions = self._layer.positions_with(rows, kv_heads, new, mask.device)[:, :, None].expand(-1, -1, new, -1)
        own = mask.expand(-1, kv_heads, -1, -1).gather(-1, positions)
        return inputs, {**kwargs, "attention_mask": own.repeat_interleave(module.num_key_value_groups, dim=1)}

    def _after(self, module: Any, inputs: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if kwargs.get("past_key_values") is not self._cache:
            return
        projected = torch.cat([self._projected.pop(name) for name in PROJECTIONS], dim=-1)
        with torch.no_grad():
            scores = self._score(projected).float().transpose(1, 2).expand(-1, self._layer.keys.shape[1], -1)
        if self._padding is not None:
            scores = scores.masked_fill(self._padding[:, None], -torch.inf)
        self._layer.evict(scores)


def save_heads(
    heads: RetainingHeads, folder: Path | str, base: Mapping[str, str], metrics: Mapping[str, Any] | None = None
) -> None:
    """Write `heads.safetensors`; raises WriteError.

    `base` has the `name` and `fingerprint` of the model, `metrics` is any JSON to keep with the heads. Both are in the
    metadata of the file.
    """
    facts = {"shape": heads.shape, "bias": heads.bias, "base": dict(base), "metrics": dict(metrics or {})}
    weights = {name: tensor.contiguous() for name, tensor in heads.state_dict().items()}
    make_folder(Path(folder))
    write(Path(folder) / FILE, to_bytes(weights, {"heads": json.dumps(facts)}))


def load_heads(folder: Path | str, fingerprint: str) -> RetainingHeads:
    """Load heads for the model with this fingerprint (`probes.fingerprint`); raises ModelError for unusable ones."""
    path = Path(folder) / FILE
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["heads"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layers, width, hidden, kv_heads = facts["shape"]
        heads = RetainingHeads(layers, width, hidden, kv_heads, facts["bias"])
        heads.load_state_dict(weights)
        name, trained_for = facts["base"]["name"], str(facts["base"]["fingerprint"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path} cannot be loaded: {reason}; save or download it again", code="heads_unusable"
        ) from None
    if trained_for != fingerprint:
        raise ModelError(
            f"{path} was trained for {name} ({trained_for[:12]}), but this model is another one ({fingerprint[:12]}); "
            "train heads for it",
            code="heads_of_another_model",
        )
    return heads.eval().requires_grad_(False)
