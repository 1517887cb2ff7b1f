"""FLOPs of a generation, the unit in which tokens of different models can be added.

A dense decoder spends two FLOPs per matrix parameter and token. Attention takes four more per layer, head, dimension of
a head, and position attended to. Norms, rotations, softmax and sampling are left out. The model's shape is read from
its configuration alone; no weights are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError, check_known
from ...models import load_config

_UNSUPPORTED = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "attention with a latent cache",
    "num_kv_shared_layers": "layers that share their cache",
    "multi_query": "multi-query attention in a form that is not supported",
}
"""Configuration fields that, when set, break the arithmetic of a dense decoder."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide a model's FLOPs and memory traffic.

    All `parameters` count tied ones once; `blocks` are multiplied with every token, and `head` with every token whose
    logits are needed. A step `read`s an embedding table only if it is also the head. Per layer, a token attends to at
    most the positions in `windows`. `max_context` and `dtype` are None if the configuration does not say.
    """

    parameters: int
    blocks: int
    head: int
    read: int
    windows: tuple[float, ...]
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int | None
    dtype: str | None

    def attended_positions(self, position: float) -> float:
        """Return how many positions a token at `position` (from 1) attends to, summed over layers."""
        return sum(min(position, window) for window in self.windows)

    def kv_cache_values(self, context: int) -> float:
        """Return the numbers in the key-value cache of one sequence of this length."""
        return 2 * self.kv_heads * self.head_dim * self.attended_positions(context)


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of a stored weight, and the dtype that it is computed in."""

    bytes: float
    compute: str


STORAGE: Mapping[str, Storage] = {
    "float32": Storage(4, "float32"),
    "bfloat16": Storage(2, "bfloat16"),
    "float16": Storage(2, "float16"),
    "int8": Storage(1, "bfloat16"),
    # Groups of 128 with a scale and a zero point of 16 bits each: 4.25 bits per weight.
    "int4": Storage(4.25 / 8, "bfloat16"),
}
"""The dtypes of weights. All weights are stored in them, the head included."""


def get_storage(dtype: str) -> Storage:
    """Return how weights of a dtype are stored; raises OptionError for an unknown dtype."""
    check_known("dtype", dtype, STORAGE)
    return STORAGE[dtype]


def load_shape(model: str) -> ModelShape:
    """Load the shape of an embedded model, a folder or a model of the hub; raises ModelError."""
    return read_shape(load_config(model)[1], model)


def read_shape(config: Any, name: str = "the model") -> ModelShape:
    """Read the shape from a transformers configuration; raises ModelError for anything but a dense decoder."""
    import torch
    from transformers import AutoModelForCausalLM

    text = config.get_text_config(decoder=True)
    _check_dense(text, name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    sizes = {id(p): p.numel() for p in model.parameters()}
    matrices = {id(p) for p in model.parameters() if p.dim() >= 2}
    dtype = text.dtype if text.dtype is not None else config.dtype
    return ModelShape(
        parameters=sum(sizes.values()),
        blocks=sum(sizes[key] for key in matrices - set(tables) - {id(head)}),
        head=head.numel(),
        read=sum(size for key, size in sizes.items() if key not in tables or key == id(head)),
        windows=_read_windows(text, name),
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        max_context=getattr(text, "max_position_embeddings", None),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
    )


def _check_dense(config: Any, name: str) -> None:
    for field, meaning in _UNSUPPORTED.items():
        if getattr(config, field, None):
            message = f"{name!r} has {meaning} ({field}); accepted: a dense decoder with ordinary attention"
            raise ModelError(message, code="not_a_dense_decoder")
    for field in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        if not isinstance(getattr(config, field, None), int):
            message = f"the configuration of {name!r} has no {field}; accepted: a dense decoder"
            raise ModelError(message, code="not_a_dense_decoder")


def _read_windows(config: Any, name: str) -> tuple[float, ...]:
    sliding = getattr(config, "sliding_window", None) or math.inf
    default = "full_attention" if sliding == math.inf else "sliding_attention"
    layer_types = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    windows = {"full_attention": math.inf, "sliding_attention": sliding}
    if unsupported := set(layer_types) - set(windows):
        message = f"{name!r} has layers of {', '.join(sorted(unsupported))}; accepted: {', '.join(windows)}"
        raise ModelError(message, code="not_a_dense_decoder")
    return tuple(windows[kind] for kind in layer_types)


def prefill_flops(shape: ModelShape, prompt: int) -> float:
    """Compute the FLOPs of reading a prompt; logits are computed for its last token only."""
    return 2.0 * shape.blocks * prompt + 2.0 * shape.head + _attention_flops(shape, 1, prompt)


def decode_flops(shape: ModelShape, prompt: int, output: int) -> float:
    """Compute the FLOPs of `output` tokens after a prompt; the first one is part of the prefill."""
    steps = max(output - 1, 0)
    return 2.0 * (shape.blocks + shape.head) * steps + _attention_flops(shape, prompt + 1, prompt + steps)


def generation_flops(shape: ModelShape, prompt: int, output: int) -> float:
    """Compute the FLOPs of one generation, prefill and decoding together."""
    return prefill_flops(shape, prompt) + decode_flops(shape, prompt, output)


def token_flops(shape: ModelShape, context: int) -> float:
    """Compute the FLOPs of decoding one token at this length."""
    return 2.0 * (shape.blocks + shape.head) + _attention_flops(shape, context, context)


def _attention_flops(shape: ModelShape, first: int, last: int) -> float:
    """Compute the FLOPs of attention for the tokens at positions `first` to `last` (from 1)."""
    positions = sum(_sum_positions(last, window) - _sum_positions(first - 1, window) for window in shape.windows)
    return 4.0 * shape.heads * shape.head_dim * positions


def _sum_positions(last: int, window: float) -> float:
    if last <= window:
        return last * (last + 1) / 2
    return window * (window + 1) / 2 + (last - window) * window
