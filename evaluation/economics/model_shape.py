"""What of a dense decoder decides its FLOPs and bytes, read from its configuration alone: no weights are loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError

_UNLIKE = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "attention with a latent cache",
    "num_kv_shared_layers": "layers that share their cache",
    "multi_query": "attention with its heads named otherwise",
}
"""Configuration field -> what it means when it is set; all of it breaks the arithmetic of a dense decoder."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Parameters by what is done with them, and the attention.

    parameters counts each once, tied ones too. blocks are multiplied with every token, head with every token whose
    logits are wanted; `read` is what one step reads of all of them (an embedding table that is not also the head is
    only looked up). windows holds, per layer, how many positions a token attends to at most.
    """

    parameters: int
    blocks: int
    head: int
    read: int
    windows: tuple[float, ...]
    heads: int
    kv_heads: int
    head_dim: int
    longest: int | None
    dtype: str | None

    def attended(self, position: float) -> float:
        """Positions that a token at `position` (from 1) attends to, summed over layers."""
        return sum(min(position, window) for window in self.windows)

    def cached_values(self, context: int) -> float:
        """Numbers in the key-value cache of one sequence of this length."""
        return 2 * self.kv_heads * self.head_dim * self.attended(context)


def load_config(model: str) -> Any:
    """The configuration of an embedded model, a folder or a model of the hub; raises ModelError."""
    from transformers import AutoConfig

    # How models are found and refused is the engine's business; only its weights are not wanted here.
    from ...controller.engines.checkpoints import check_causal, load_or_raise, resolve_checkpoint

    place = resolve_checkpoint(model)
    config = load_or_raise(model, "configuration", lambda: AutoConfig.from_pretrained(place))
    check_causal(model, config)
    return config


def load_shape(model: str) -> ModelShape:
    """The shape of an embedded model, a folder or a model of the hub; raises ModelError."""
    return read_shape(load_config(model), model)


def read_shape(config: Any, name: str = "the model") -> ModelShape:
    """The shape of a transformers configuration; raises ModelError for anything but a dense decoder."""
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
        windows=_windows(text, name),
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        longest=getattr(text, "max_position_embeddings", None),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
    )


def _check_dense(config: Any, name: str) -> None:
    for field, meaning in _UNLIKE.items():
        if getattr(config, field, None):
            raise ModelError(f"{name!r} has {meaning} ({field}); accepted: a dense decoder with ordinary attention")
    for field in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        if not isinstance(getattr(config, field, None), int):
            raise ModelError(f"the configuration of {name!r} has no {field}; accepted: that of a dense decoder")


def _windows(config: Any, name: str) -> tuple[float, ...]:
    sliding = getattr(config, "sliding_window", None) or math.inf
    default = "full_attention" if sliding == math.inf else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    known = {"full_attention": math.inf, "sliding_attention": sliding}
    if strange := set(kinds) - set(known):
        raise ModelError(f"{name!r} has layers of {', '.join(sorted(strange))}; accepted: {', '.join(known)}")
    return tuple(known[kind] for kind in kinds)
