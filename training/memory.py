"""Low-rank adapters, and the memory that a training run needs, estimated from shapes without the weights."""

from __future__ import annotations

import re
import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import did_you_mean
from .config import Lora, Recipe, RecipeError
from .processes import world_size

if TYPE_CHECKING:
    from peft import LoraConfig

ALL = "all-linear"
_QUANTIZED = "tersely_w4a8"
"""The quantization method that `tersely quantize` writes into a checkpoint; imported from nowhere, to stay light."""


def make_lora_config(recipe: Recipe) -> LoraConfig | None:
    """The PEFT configuration of a recipe's adapter; None if all weights are trained."""
    lora = recipe.optimiser.lora
    return None if lora is None else _lora_config(lora, _parse_targets(lora))


def count_adapter_parameters(model: Any, lora: Lora) -> int:
    """Parameters that PEFT would add to a model, perhaps on the meta device; raises RecipeError for wrong targets."""
    from peft import get_peft_model

    if dict(getattr(model.config, "quantization_config", None) or {}).get("quant_method") == _QUANTIZED:
        raise RecipeError(
            "optimiser.lora needs plain linear layers, but this model is quantized; train it before quantizing",
            code="quantized_model",
        )
    targets, count = _parse_targets(lora), 0
    # One by one, because PEFT silently ignores those of several that match nothing.
    for target in [targets] if isinstance(targets, str) else [[name] for name in targets] or [[]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are shown when training starts
                adapted = get_peft_model(deepcopy(model), _lora_config(lora, target))
        except (re.error, ValueError) as error:
            ends = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")})
            raise RecipeError(
                f"optimiser.lora.targets is {target!r}, which is not a valid expression, or matches no layers, or some "
                f"that cannot have adapters ({error}); {did_you_mean(''.join(target), [ALL, *ends])}",
                code="invalid_lora_targets",
            ) from None
        count += sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)
    return count


def _lora_config(lora: Lora, targets: str | list[str]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _parse_targets(lora: Lora) -> str | list[str]:
    """Targets for PEFT, which matches a string against full names; a single word becomes a list of one name."""
    if not isinstance(lora.targets, str):
        return list(lora.targets)
    return lora.targets if lora.targets == ALL or not lora.targets.isidentifier() else [lora.targets]


_ADAM_STATES = 2
_SAVED_HIDDEN, _SAVED_MLP, _SAVED_CHECKPOINTED = 12, 4, 2
"""Numbers saved for the backward pass, per token and layer: multiples of the hidden size and of the MLP's inner size.
With activation checkpointing, only a layer's input and output are saved."""
_SAVED_BYTES = {2: 3, 4: 4}
"""Bytes of a saved number by those of a weight: adapters, norms and autocast keep copies in the other precision."""


@dataclass(frozen=True, slots=True)
class ResidentModels:
    """The models and heads that a method keeps in memory. With adapters, a reference model costs nothing extra."""

    models: int = 1  # full models in memory while completions are sampled
    reference: bool = False  # whether the model before training is needed as a reference
    sequences: int = 1  # per training example; two for a preference pair
    heads: int = 0  # output heads trained in place of the model's own
    # the trained part of the model, unless adapters are trained. With only heads trained, nothing below them is saved
    # for the backward pass.
    trained: Literal["model", "embeddings", "heads", "nothing"] = "model"


ONE_MODEL = ResidentModels()


class MemoryEstimate(NamedTuple):
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
        parts = ", ".join(f"{name} {size / 2**30:.2g}" for name, size in self._asdict().items())
        return f"about {self.total / 2**30:.2g} GiB ({parts})"


def estimate_memory(model: Any, recipe: Recipe, longest: int, resident: ResidentModels = ONE_MODEL) -> MemoryEstimate:
    """Estimate the memory of a recipe on a model, perhaps on the meta device; of vLLM only the weights are counted.

    `longest` is in tokens, of a prompt with its completion.
    """
    config, lora = model.config.get_text_config(decoder=True), recipe.optimiser.lora
    plain = sum(weight.numel() for weight in model.parameters())
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    bytes_per_weight = {"auto": table.element_size(), "float32": 4, "bfloat16": 2}[recipe.optimiser.dtype]
    heads = resident.heads * head.numel()
    with_heads = plain + heads - (head.numel() if heads and head is not table else 0)
    if lora is not None:
        trained = count_adapter_parameters(model, lora)
    else:
        sizes = {"model": with_heads, "embeddings": table.numel(), "heads": heads, "nothing": 0}
        trained = sizes[resident.trained]
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
