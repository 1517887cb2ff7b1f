"""Low-rank adapters: what they stand beside, and their configuration for PEFT."""

from __future__ import annotations

import re
from typing import Any

from ..errors import did_you_mean
from .config import Lora, Recipe, RecipeError

ALL = "all-linear"


def adapter(recipe: Recipe) -> Any:
    """The adapter's configuration, None if all weights are trained."""
    lora = recipe.optimiser.lora
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(lora),
        task_type="CAUSAL_LM",
    )


def adapted(model: Any, lora: Lora) -> dict[str, tuple[int, ...]]:
    """The modules by name that get an adapter, as PEFT chooses them, with the shapes of their weights.

    One text is "all-linear", which leaves the head alone, or an expression for whole names; each word of a list is a
    name or the end of some. Raises RecipeError for a target that is nowhere.
    """
    import torch

    kinds = (torch.nn.Linear, torch.nn.Embedding)
    able = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if lora.targets == ALL:
        head = model.get_output_embeddings()
        linear = {name: m for name, m in able.items() if isinstance(m, torch.nn.Linear) and m is not head}
        return {name: tuple(module.weight.shape) for name, module in linear.items()}
    found: dict[str, tuple[int, ...]] = {}
    targets = _targets(lora)
    for target in [targets] if isinstance(targets, str) else targets:
        hits = {name: tuple(module.weight.shape) for name, module in able.items() if _meant(targets, target, name)}
        if not hits:
            ends = sorted({name.rpartition(".")[2] for name in able})
            raise RecipeError(f"optimiser.lora.targets has {target!r}, which is nowhere; {did_you_mean(target, ends)}")
        found |= hits
    return found


def _targets(lora: Lora) -> str | list[str]:
    """As PEFT takes them; a word by itself is a list of one, for which an expression would hold no whole name."""
    if not isinstance(lora.targets, str):
        return list(lora.targets)
    return lora.targets if lora.targets == ALL or not lora.targets.isidentifier() else [lora.targets]


def _meant(targets: str | list[str], target: str, name: str) -> bool:
    if not isinstance(targets, str):
        return name == target or name.endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise RecipeError(
            f"optimiser.lora.targets is {target!r}, no regular expression ({error}); accepted: {ALL}, a list of names, "
            "or an expression for whole names"
        ) from None
