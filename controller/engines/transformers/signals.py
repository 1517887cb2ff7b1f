"""Signals of a batch in one pass over its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.signals import logit_signals
from ...types import Signals


def compute_signals(logits: Tensor, tokens: Tensor) -> list[Signals]:
    """Signals of tokens [rows] sampled from the model's own logits [rows, vocabulary]; one wait for the device."""
    found = logit_signals(logits)
    chosen = (logits.gather(1, tokens[:, None]).squeeze(1).float() - found.log_total).exp()
    return [Signals(*row) for row in torch.stack((found.entropy, found.top, chosen, found.margin), dim=1).tolist()]
