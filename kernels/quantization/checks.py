"""What cannot be quantized, said before it is begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import ModelError, OptionError
from ..w4a8_layout import DEEPEST
from .calibration import Inputs
from .config import ScaleSearch, Scheme
from .linear import find_head, quantizable

LEAST_COVERED = 0.5
"""Share of the weights beside embeddings that has to be in layers which can be quantized."""
LOGITS_CHANGED_BY = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_mup_width_multiplier",
    "logits_scaling",
    "logits_soft_cap",
    "output_logit_soft_cap",
)
"""What configurations call a change of logits behind the head, with which how far they lie apart changes."""


def check_model(model: Any, scheme: Scheme) -> None:
    """Raise ModelError for a model that is quantized already, of which too little would be, or whose head cannot be."""
    if getattr(model.config, "quantization_config", None) is not None or getattr(model, "is_quantized", False):
        method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "unknown")
        raise ModelError(f"the model is quantized already ({method}); give the one it was made from")
    layers = dict(quantizable(model, scheme))
    embedded = sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    total = sum(p.numel() for p in model.parameters()) - embedded
    covered = sum(layer.weight.numel() for name, layer in layers.items() if name != find_head(model))
    if not layers or covered < LEAST_COVERED * total:
        raise ModelError(
            f"{covered / max(total, 1):.0%} of the weights are in linear layers; accepted: models with at least "
            f"{LEAST_COVERED:.0%} of them there, which mixtures of experts have not"
        )
    _check_head(model, scheme)
    deep = next((name for name, layer in layers.items() if layer.in_features > DEEPEST), None)
    if deep is not None:
        raise ModelError(f"layer {deep} has more than {DEEPEST} inputs; the kernel's sums would leave 32 bits")


def _check_head(model: Any, scheme: Scheme) -> None:
    config = model.config.get_text_config(decoder=True).to_dict()
    changed = {name: config[name] for name in LOGITS_CHANGED_BY if config.get(name) not in (None, 1)}
    if scheme.head == "preview" and changed:
        raise ModelError(
            f"the model changes what its head says, by {changed}, so that a preview cannot tell what is unlikely"
            "; accepted: --head int8, int4 or keep"
        )


def check_inputs(
    layers: dict[str, nn.Linear], inputs: Mapping[str, Inputs] | None, scheme: Scheme, search: ScaleSearch
) -> None:
    """Raise OptionError for inputs that are not those of all layers, or not what the search needs."""
    if inputs is None:
        return
    for name in layers:
        given = inputs.get(name)
        if given is None or given.size != scheme.group_size or given.whole < search.compensate:
            found = "none" if given is None else f"sums {'of all' if given.whole else f'in groups of {given.size}'}"
            raise OptionError(
                f"inputs of layer {name}: {found}; accepted: those of every layer that `inputs_of` makes for groups "
                f"of {scheme.group_size} and this search"
            )
