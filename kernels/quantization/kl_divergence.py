"""How far a model's next tokens move: their divergence from what they were, which perplexity alone does not show."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import passes
from .model import Piece

_KEPT = 64  # tokens of each place whose chances are kept; what is left counts as one more


def cache_reference(model: Any, rows: Tensor) -> Piece:
    """What a model expects to follow in token rows [rows, length], beside its perplexity.

    tokens: int32 [rows, length - 1, kept], the likeliest; chances: their log-probabilities, float32.
    """
    tokens, chances, losses = [], [], []
    for logits, ids in passes(model, rows):
        found = logits.log_softmax(-1)
        most = found.topk(min(_KEPT, found.shape[-1]))
        tokens.append(most.indices.int().cpu())
        chances.append(most.values.cpu())
        losses.append(F.nll_loss(found, ids).item())
    return {"tokens": torch.stack(tokens), "chances": torch.stack(chances)}, {"perplexity": exp(fmean(losses))}


def kl_to_reference(model: Any, rows: Tensor, before: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """The divergence (KL, nats a token) of a model from what was `remembered` on the same rows, and its loss, by rows.

    All tokens but the likeliest are taken as one, so it is at most the divergence of all, and hardly less.
    """
    apart, losses = [], []
    for (logits, ids), tokens, own in zip(passes(model, rows), before["tokens"], before["chances"], strict=True):
        found = logits.log_softmax(-1)
        now = found.gather(1, tokens.long().to(found.device)).cpu()
        one_by_one = (own.exp() * (own - now)).sum(-1)
        left, left_now = _left(own), _left(now)
        apart.append((one_by_one + left.exp() * (left - left_now)).mean().item())
        losses.append(F.nll_loss(found, ids).item())
    return apart, losses


def _left(chances: Tensor) -> Tensor:
    """The log-probability of all that is not kept, of log-probabilities [places, kept]."""
    return torch.log((1 - chances.double().exp().sum(-1)).clamp(min=1e-9)).float()
