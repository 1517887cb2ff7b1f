"""Estimate the memory of a training run from the shapes of a model, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .adapters import count_adapter_parameters
from .config import Recipe
from .processes import world_size

_ADAM_STATES = 2
_SAVED_HIDDEN, _SAVED_MLP, _SAVED_CHECKPOINTED = 12, 4, 2
"""Numbers saved for the backward pass, per token and layer: multiples of the hidden size and of the MLP's inner size.
With activation checkpointing, only a layer's input and output are saved."""
_SAVED_BYTES = {2: 3, 4: 4}
"""Bytes of a saved number by those of a weight: adapters, norms and autocast keep copies in the other precision."""


@dataclass(frozen=True, slots=True)
class ResidentModels:
    """The models and heads that a method keeps in memory. With adapters, a reference model costs nothing extra.

    Attributes:
        models: full models in memory while completions are sampled.
        reference: whether the model before training is needed as a reference.
        sequences: per training example; two for a preference pair.
        heads: output heads trained in place of the model's own.
        trained: the trained part of the model, unless adapters are trained. With only heads trained, nothing below
            them is saved for the backward pass.
    """

    models: int = 1
    reference: bool = False
    sequences: int = 1
    heads: int = 0
    trained: Literal["model", "embeddings", "heads", "nothing"] = "model"


ONE_MODEL = ResidentModels()


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose."""

    weights: float
    training: float
    activations: float
    cache: float

    @property
    def total(self) -> float:
        """Peak memory. Sampling and training alternate, so only the larger of cache and activations counts."""
        return self.weights + self.training + max(self.activations, self.cache)

    def __str__(self) -> str:
        names = ("weights", "training", "activations", "cache")
        parts = ", ".join(f"{name} {getattr(self, name) / 2**30:.2g}" for name in names)
        return f"about {self.total / 2**30:.2g} GiB ({parts})"


def estimate_memory(model: Any, recipe: Recipe, longest: int, resident: ResidentModels = ONE_MODEL) -> MemoryEstimate:
    """Estimate the memory of a recipe on a model, which may be on the meta device.

    Of a vLLM engine only the weights are counted; the rest depends on its own settings.

    Args:
        longest: tokens of the longest prompt with its completion.
    """
    config, lora = model.config.get_text_config(decoder=True), recipe.optimiser.lora
    bytes_per_weight = {
        "auto": model.get_input_embeddings().weight.element_size(),
        "float32": 4,
        "bfloat16": 2,
    }[recipe.optimiser.dtype]
    plain = sum(weight.numel() for weight in model.parameters())
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with_heads = plain + resident.heads * head.numel()
    if resident.heads and head is not table:
        with_heads -= head.numel()
    if lora is not None:
        trained = count_adapter_parameters(model, lora)
    else:
        trained = {
            "model": with_heads,
            "embeddings": table.numel(),
            "heads": resident.heads * head.numel(),
            "nothing": 0,
        }[resident.trained]
    own_engine = recipe.rollouts.engine == "transformers"
    more_models = max(resident.models - 1, int(resident.reference and lora is None)) + (not own_engine)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    one_layer = _SAVED_HIDDEN * config.hidden_size + _SAVED_MLP * config.intermediate_size
    checkpointing = recipe.optimiser.checkpoint_activations
    saved = _SAVED_CHECKPOINTED * config.hidden_size if checkpointing else one_layer
    layers = 0 if resident.trained == "heads" else config.num_hidden_layers
    tokens = recipe.optimiser.micro_batch * resident.sequences * longest
    cached = 2 * kv_heads * head_dim * config.num_hidden_layers
    # With several processes, each holds the gradients a second time, in its communication buffers.
    copies = 1 + _ADAM_STATES + (world_size() > 1)
    return MemoryEstimate(
        weights=(with_heads + more_models * plain) * bytes_per_weight,
        training=trained * copies * (bytes_per_weight if lora is None else 4),
        activations=tokens * (saved * layers + one_layer) * _SAVED_BYTES.get(bytes_per_weight, bytes_per_weight),
        cache=recipe.rollouts.batch * longest * cached * bytes_per_weight if own_engine else 0,
    )
