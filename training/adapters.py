"""Low-rank adapters: their configuration for PEFT, and what they come to on a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from ..errors import did_you_mean
from .config import Lora, Recipe, RecipeError

ALL = "all-linear"
_QUANTIZED = "tersely_w4a8"
"""What checkpoints of `tersely quantize` call their method; training stands on no kernel that could be asked."""


def make_adapter(recipe: Recipe) -> Any:
    """The adapter's configuration, None if all weights are trained."""
    lora = recipe.optimiser.lora
    return None if lora is None else _configuration(lora, _targets(lora))


def with_adapter(model: Any, lora: Lora) -> int:
    """How many numbers the adapters of a model have, which may be on the meta device, by PEFT's own choice of layers.

    Targets are "all-linear", an expression for whole names, or names or the ends of some. Raises RecipeError for one
    that fits no layer that can have an adapter.
    """
    if dict(getattr(model.config, "quantization_config", None) or {}).get("quant_method") == _QUANTIZED:
        raise RecipeError("optimiser.lora adapts linear layers, and this model's are quantized; train it before that")
    targets = _targets(lora)
    if not targets:
        raise RecipeError(f"optimiser.lora.targets is empty; accepted: {ALL}, or names of layers")
    if isinstance(targets, list) and len(targets) > 1:
        for target in targets:  # of several PEFT leaves out those that fit nothing
            _numbers(model, lora, [target])
    return _numbers(model, lora, targets)


def _numbers(model: Any, lora: Lora, targets: str | list[str]) -> int:
    from peft import get_peft_model

    said = targets if isinstance(targets, str) else ", ".join(targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which come again when it is trained
            made = get_peft_model(deepcopy(model), _configuration(lora, targets))
    except re.error as error:
        raise RecipeError(
            f"optimiser.lora.targets is {said!r}, no regular expression ({error}); accepted: {ALL}, a list of names, "
            "or an expression for whole names"
        ) from None
    except ValueError:
        ends = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")})
        raise RecipeError(
            f"optimiser.lora.targets has {said!r}, which fits no layers that can all have adapters; "
            f"{did_you_mean(said, ends)}"
        ) from None
    return sum(part.numel() for name, part in made.named_parameters() if "lora_" in name)


def _configuration(lora: Lora, targets: str | Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _targets(lora: Lora) -> str | list[str]:
    """As PEFT takes them; a word by itself is a list of one, for which an expression would hold no whole name."""
    if not isinstance(lora.targets, str):
        return list(lora.targets)
    return lora.targets if lora.targets == ALL or not lora.targets.isidentifier() else [lora.targets]
