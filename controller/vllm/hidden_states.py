"""The last hidden state of each row that gets logits, kept as it passes by.

vLLM lets a layer be replaced by name before a model is built. Ours is its own logits layer, which also keeps a
reference to what it was given: no copy, nothing inside a compiled graph.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.logits_processor import LogitsProcessor

NAME = "LogitsProcessor"
_kept: list[Tensor] = []


def last_hidden_states(rows: int) -> Tensor | None:
    """Hidden states [rows, width] of the latest logits; None if they are of other rows, or nothing is tapped."""
    return _kept[0] if _kept and _kept[0].shape[0] == rows else None


class HiddenStateTap(LogitsProcessor):  # type: ignore[misc]
    """The logits layer of vLLM, which keeps what it was given."""

    def forward(self, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """See the class it replaces."""
        _kept[:] = [hidden_states]
        logits: Tensor | None = super().forward(lm_head, hidden_states, *args, **kwargs)
        return logits


def install() -> bool:
    """Tap models that are built from now on; False where somebody else has taken the layer's place."""
    if NAME not in op_registry_oot:
        PluggableLayer.register_oot(name=NAME)(HiddenStateTap)
    return bool(op_registry_oot[NAME] is HiddenStateTap)
