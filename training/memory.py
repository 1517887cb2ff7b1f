"""How much memory a training takes, about: from the shapes of a model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .adapters import with_adapter
from .config import Recipe
from .processes import count

_ADAM = 2
"""Numbers of the optimiser for each that is trained."""
_KEPT, _KEPT_INSIDE, _KEPT_CHECKPOINTED = 12, 4, 2
"""Numbers kept for the backward pass for each token and layer: so many times the hidden size and the size inside of the
MLP, or, of layers that are computed again, times the hidden size for what goes in and comes out."""
_KEPT_BYTES = {2: 3, 4: 4}
"""Of each such number, by the bytes of a weight: adapters, norms and autocast keep copies in the other precision."""


@dataclass(frozen=True, slots=True)
class ResidentModels:
    """What a method keeps in memory beside the model: adapters need no reference, for the model without them is one.

    models: whole ones at once while completions are sampled. reference: the model before training. texts: that an
    example has, two for a pair. heads: that are trained in place of the model's own. trained: what of the model is,
    where there are no adapters; below heads alone nothing is kept for the backward pass.
    """

    models: int = 1
    reference: bool = False
    texts: int = 1
    heads: int = 0
    trained: Literal["model", "embeddings", "heads", "nothing"] = "model"


ALONE = ResidentModels()
"""Nothing but the model."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by what they are for."""

    weights: float
    training: float
    activations: float
    cache: float

    @property
    def total(self) -> float:
        """Rollouts and training take turns, so the larger of cache and activations counts."""
        return self.weights + self.training + max(self.activations, self.cache)

    def __str__(self) -> str:
        parts = ("weights", "training", "activations", "cache")
        said = ", ".join(f"{part} {getattr(self, part) / 2**30:.2g}" for part in parts)
        return f"about {self.total / 2**30:.2g} GiB ({said})"


def estimate(model: Any, recipe: Recipe, longest: int, held: ResidentModels = ALONE) -> Estimate:
    """The memory of a recipe on a model, which may be on the meta device; longest: tokens of prompt and completion.

    Of a vLLM that decodes only the weights are in it: what else it takes is its own setting.
    """
    config, lora = model.config.get_text_config(decoder=True), recipe.optimiser.lora
    size = model.get_input_embeddings().weight.element_size() if recipe.optimiser.dtype == "auto" else 4
    if recipe.optimiser.dtype == "bfloat16":
        size = 2
    every = sum(weight.numel() for weight in model.parameters())
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    headed = every + held.heads * head.numel() - (head.numel() if held.heads and head is not table else 0)
    of_model = {
        "model": headed,
        "embeddings": table.numel(),
        "heads": held.heads * head.numel(),
        "nothing": 0,
    }[held.trained]
    trained = of_model if lora is None else with_adapter(model, lora)
    inside = recipe.rollouts.engine == "transformers"
    others = max(held.models - 1, int(held.reference and lora is None)) + (not inside)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    whole = _KEPT * config.hidden_size + _KEPT_INSIDE * config.intermediate_size
    kept = _KEPT_CHECKPOINTED * config.hidden_size if recipe.optimiser.checkpoint_activations else whole
    layers = 0 if held.trained == "heads" else config.num_hidden_layers
    tokens = recipe.optimiser.micro_batch * held.texts * longest
    per_token = 2 * kv_heads * head_dim * config.num_hidden_layers
    return Estimate(
        weights=(headed + others * every) * size,
        # Of several processes, each has gradients once more, in what it sends.
        training=trained * (1 + _ADAM + (count() > 1)) * (size if lora is None else 4),
        activations=tokens * (kept * layers + whole) * _KEPT_BYTES.get(size, size),
        cache=recipe.rollouts.batch * longest * per_token * size if inside else 0,
    )
