"""Low-rank adapters: their PEFT configuration and their size."""

from __future__ import annotations

import re
import warnings
from copy import deepcopy
from typing import Any

from ..errors import did_you_mean
from .config import Lora, Recipe, RecipeError

ALL = "all-linear"
_QUANTIZED = "tersely_w4a8"
"""The quantization method that `tersely quantize` writes into a checkpoint; imported from nowhere, to stay light."""


def make_lora_config(recipe: Recipe) -> Any:
    """The PEFT configuration of a recipe's adapter; None if all weights are trained."""
    lora = recipe.optimiser.lora
    return None if lora is None else _lora_config(lora, _parse_targets(lora))


def count_adapter_parameters(model: Any, lora: Lora) -> int:
    """Parameters that PEFT would add to a model, which may be on the meta device.

    Raises:
        RecipeError: if a target matches no layer that can have an adapter.
    """
    if dict(getattr(model.config, "quantization_config", None) or {}).get("quant_method") == _QUANTIZED:
        raise RecipeError(
            "optimiser.lora needs plain linear layers, but this model is quantized; train it before quantizing",
            code="quantized_model",
        )
    targets = _parse_targets(lora)
    if not targets:
        raise RecipeError(
            f"optimiser.lora.targets is empty; accepted: {ALL}, or names of layers", code="invalid_lora_targets"
        )
    if isinstance(targets, list) and len(targets) > 1:
        for target in targets:  # PEFT silently ignores those of several that match nothing
            _count(model, lora, [target])
    return _count(model, lora, targets)


def _count(model: Any, lora: Lora, targets: str | list[str]) -> int:
    from peft import get_peft_model

    names = targets if isinstance(targets, str) else ", ".join(targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown when training starts
            adapted = get_peft_model(deepcopy(model), _lora_config(lora, targets))
    except re.error as error:
        raise RecipeError(
            f"optimiser.lora.targets is {names!r}, which is not a valid regular expression ({error}); accepted: {ALL}, "
            "a list of names, or a regular expression for full names",
            code="invalid_lora_targets",
        ) from None
    except ValueError:
        ends = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")})
        raise RecipeError(
            f"optimiser.lora.targets has {names!r}, which matches no layers, or some that cannot have adapters; "
            f"{did_you_mean(names, ends)}",
            code="invalid_lora_targets",
        ) from None
    return sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)


def _lora_config(lora: Lora, targets: str | list[str]) -> Any:
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
