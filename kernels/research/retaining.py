"""A key-value cache of fixed size that evicts low-scoring units, after Locret or R-KV.

A unit is one token's key and value in one key-value head of one layer. After each forward pass a head keeps the
`budget` units with the highest scores; the newest, the stabilizers, always stay. Retaining heads (Locret,
arXiv:2410.01805) score a unit once: a small network for each layer reads the token's projections [q, k, v], score =
silu([q, k, v] W1 + b1) W2 + b2, one per key-value head; the authors have no biases. `RKV` scores all units at each
eviction and needs no training.

Saved heads are one file, `heads.safetensors`, whose metadata names the base model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...errors import CapabilityError, ModelError, OptionError
from ...io import make_folder, write
from ...models import find_cache
from ..attention import register

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
STABILIZERS = 5 / 12  # share of the budget for the newest units, as in the paper: 2500 of 6000
FILE = "heads.safetensors"
_NAME = "tersely_observed"

Scorer = Callable[[int, Tensor], Tensor]
"""From a layer's index and its projections [rows, tokens, width] to scores [rows, tokens, kv_heads or 1]."""
Observe = Callable[[int, Tensor, Tensor, Tensor, "Tensor | None"], "Tensor | None"]
"""From a layer's index, its new projections [rows, new, width], its queries [rows, heads, new, dim], all its keys and
its mask to the mask that its attention uses."""


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


@dataclass(frozen=True, slots=True)
class RKV:
    """R-KV (arXiv:2505.24133), a `Scorer`: units stay that the newest queries attend to, and that are unlike others."""

    weight: float = 0.1  # of the importance, the paper's lambda; one minus it is that of the redundancy
    window: int = 8  # the newest units, which stay, and whose queries measure the importance; the paper's alpha
    buffer: int = 128  # units beyond the budget at which those are evicted
    pooled: int = 7  # neighbouring units that share their highest importance
    similar: float = 0.5  # cosine of two keys above which one repeats the other

    def __call__(self, layer: int, projected: Tensor) -> Tensor:
        """Zeros, as units have no score until some are evicted."""
        return projected.new_zeros(*projected.shape[:2], 1)

    def score(self, query: Tensor, keys: Tensor, padding: Tensor) -> Tensor:
        """Scores [rows, kv_heads, units]; those of the window mean nothing.

        From the queries of the window [rows, heads, window, dim], all keys [rows, kv_heads, units, dim], and which
        units are padding.
        """
        least = torch.finfo(torch.float32).min
        query, keys = query.float().unflatten(1, (keys.shape[1], -1)), keys.float()
        logits = (query @ keys[:, :, None].mT).amax(dim=2) * keys.shape[-1] ** -0.5
        hidden = padding.clone()
        hidden[..., -self.window :] = True
        importance = logits.masked_fill(hidden[:, :, None], least).softmax(dim=-1).mean(dim=2)
        importance = nn.functional.max_pool1d(importance, self.pooled, 1, self.pooled // 2)
        return self.weight * importance - (1 - self.weight) * self._redundancy(keys, padding)

    def _redundancy(self, keys: Tensor, padding: Tensor) -> Tensor:
        """The share of each unit in how much keys repeat it, but for the latest unit that each of them repeats.

        A key that repeats none leaves out the first unit, as in the authors' code.
        """
        normal = nn.functional.normalize(keys, dim=-1).masked_fill(padding[..., None], 0.0)
        cosine = normal @ normal.mT
        cosine.diagonal(dim1=-2, dim2=-1).zero_()
        latest = ((cosine > self.similar) * torch.arange(keys.shape[2], device=keys.device)).amax(dim=-1, keepdim=True)
        mean = cosine.scatter(-1, latest, 0.0).sum(dim=-2) / (~padding).sum(dim=-1, keepdim=True).clamp(min=1)
        return mean.masked_fill(padding, torch.finfo(mean.dtype).min).softmax(dim=-1)


@contextmanager
def retaining(
    model: Any, scorer: Scorer, budget: int, stabilizers: int | None = None, decoding: bool = True
) -> Iterator[Cache]:
    """Yield a cache of `budget` units per head for one `model.generate(..., **as_cache(model, cache))`.

    The model attends to the units that are kept, at their original positions; as long as nothing is evicted, tokens are
    those of the full cache. `prefill_chunk_size` of `generate` bounds how many units exist while a prompt is read. The
    newest `stabilizers` always stay, by default 5/12 of the budget; all of it gives a sliding window. With `decoding`
    false, units are evicted while the prompt is read only, as in Locret's code, and what is generated stays; a chunk of
    one token counts as generated. `RKV` has its own window in place of stabilizers, and its buffer on top of the
    budget. Raises OptionError for a budget or stabilizers out of range, CapabilityError for anything but full attention
    from q_proj, k_proj and v_proj.
    """
    joint = scorer if isinstance(scorer, RKV) else None
    if budget < 1:
        raise OptionError(f"budget is {budget}; accepted: 1 or more units per key-value head")
    if joint:
        if stabilizers is not None or budget < joint.window:
            raise OptionError(
                f"budget is {budget} and stabilizers {stabilizers}; accepted with R-KV: a budget of {joint.window} or "
                "more, its window, and no stabilizers"
            )
        stabilizers = joint.window
    elif stabilizers is None:
        stabilizers = int(STABILIZERS * budget)
    if not 0 <= stabilizers <= budget:
        raise OptionError(f"stabilizers is {stabilizers}; accepted: 0 to {budget}, the budget")
    layers = [RetainingLayer(budget, stabilizers, decoding, joint) for _ in attention_modules(model)]
    cache = Cache(layers=layers)

    def observe(index: int, projected: Tensor, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor | None:
        layer, (_, heads, new, _) = layers[index], query.shape
        scores = scorer(index, projected).float().transpose(1, 2).expand(-1, keys.shape[1], -1)
        if mask is not None:
            last = mask[:, 0, -1, -new:]
            scores = scores.masked_fill((~last if mask.dtype == torch.bool else last < 0)[:, None], -torch.inf)
            if keys.shape[2] < layer.seen:
                kept = layer.positions[:, :, None].expand(-1, -1, new, -1)
                mask = mask.expand(-1, keys.shape[1], -1, -1).gather(-1, kept)
                mask = mask.repeat_interleave(heads // keys.shape[1], dim=1)
        layer.evict(scores, query)
        return mask

    with observing(model, observe, cache):
        yield cache


@contextmanager
def observing(model: Any, observe: Observe, cache: Cache | None = None) -> Iterator[None]:
    """Call `observe` before each layer attends with this cache, without gradients; raises as `attention_modules`."""
    register(_NAME, _attend)
    with ExitStack() as stack:
        for index, module in enumerate(attention_modules(model)):
            for handle in _hook(module, partial(observe, index), cache):
                stack.callback(handle.remove)
        stack.callback(model.set_attn_implementation, model.config._attn_implementation)
        model.set_attn_implementation(_NAME)
        yield


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """torch's attention, after the observer of a hook, which sees queries for the usual scale of dim^-1/2."""
    observer = kwargs.pop("observer", None)
    if observer is not None:
        scale = kwargs.get("scaling")
        mask = observer(query if scale is None else query * (scale * query.shape[-1] ** 0.5), key, mask)
    stock: Any = sdpa_attention_forward
    return stock(module, query, key, value, mask, **kwargs)


def _hook(module: Any, observe: Callable[..., Tensor | None], cache: Cache | None) -> Iterator[Any]:
    """Hooks of one layer: they keep its projections, and pass the observer on to its attention."""
    projected: dict[str, Tensor] = {}

    def record(name: str, part: Any, inputs: Any, output: Tensor) -> None:
        projected[name] = output.detach()

    @torch.no_grad()
    def observer(*seen: Tensor | None) -> Tensor | None:
        return observe(torch.cat([projected.pop(name) for name in PROJECTIONS], dim=-1), *seen)

    def before(module: Any, inputs: Any, kwargs: dict[str, Any]) -> Any:
        mine = find_cache(kwargs)[1] is cache
        return (inputs, {**kwargs, "observer": observer}) if mine else None

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    for name in PROJECTIONS:
        yield getattr(module, name).register_forward_hook(partial(record, name))


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
    if config._attn_implementation not in ("sdpa", "eager", _NAME):
        raise CapabilityError(f"attention is {config._attn_implementation}; accepted: 'sdpa' or 'eager'")
    return sorted(modules, key=lambda module: module.layer_idx)


class RetainingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of the cache: `keys` and `values` [rows, kv_heads, units, dim], in their original order.

    Of each unit it holds the token's position and the score, both [rows, kv_heads, units], for `RKV` also the queries
    of its window. `seen` counts all tokens, kept or not; transformers uses it as the length of the cache.
    """

    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, budget: int, stabilizers: int, decoding: bool = True, joint: RKV | None = None) -> None:
        super().__init__()
        self.budget, self.stabilizers, self.decoding, self.seen = budget, stabilizers, decoding, 0
        self.joint, self.limit = joint, budget + max(1, joint.buffer if joint else 1)
        self.positions = self.scores = self.queries = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states [rows, kv_heads, new, dim]; call `evict` with their scores."""
        rows, kv_heads, new, _ = key_states.shape
        added = torch.arange(self.seen, self.seen + new, device=key_states.device).expand(rows, kv_heads, new)
        self.positions = torch.cat([self.positions, added], dim=-1) if self.seen else added
        self.seen += new
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, values

    def evict(self, scores: Tensor, query: Tensor) -> None:
        """Add the scores of the newest units [rows, kv_heads, new], -inf for padding; then evict down to the budget."""
        self.scores = torch.cat([self.scores, scores], dim=-1) if self.scores.numel() else scores
        if self.joint:
            queries = torch.cat([self.queries, query], dim=2) if self.queries.numel() else query
            self.queries = queries[:, :, -self.joint.window :]
        if self.scores.shape[-1] < self.limit or (scores.shape[-1] == 1 and not self.decoding):
            return
        padding, ranked = self.scores == -torch.inf, self.scores
        if self.joint:
            ranked = ranked + self.joint.score(self.queries, self.keys, padding)
        near = (self.positions >= self.seen - self.stabilizers) & ~padding
        kept = ranked.masked_fill(near, torch.inf).topk(self.budget, dim=-1).indices.sort(dim=-1).values
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
        super().batch_select_indices(indices)
        self.positions, self.scores = self.positions[indices], self.scores[indices]
        if self.joint:
            self.queries = self.queries[indices]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.positions)).repeat_interleave(repeats))


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
            heads = RetainingHeads(*(*facts["shape"], facts["bias"]))
            heads.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
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
