"""Signals of a batch in one pass over its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Signals


def signals_of(logits: Tensor, tokens: Tensor) -> list[Signals]:
    """Signals of tokens [rows] sampled from the model's own logits [rows, vocabulary]; one wait for the device."""
    log_chances = torch.log_softmax(logits.float(), dim=-1)
    chances = log_chances.exp()
    # A chance of zero has a logarithm of minus infinity, and adds nothing.
    entropy = -torch.where(chances > 0, chances * log_chances, 0.0).sum(dim=-1)
    chosen = chances.gather(1, tokens[:, None]).squeeze(1)
    return [Signals(*row) for row in torch.stack((entropy, chances.amax(dim=-1), chosen), dim=1).tolist()]
