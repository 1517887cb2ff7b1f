"""Training of retaining heads: regression on how strongly later tokens attend to earlier ones, on a frozen model.

As in Locret (arXiv:2410.01805), the importance of a unit is the highest attention logit that any later query gives it
in a head that shares it; the loss is smooth L1, plus `SMOOTHING` times the squared difference between neighbours.
`LOCRET` has the settings of the authors' code, `OURS` those for small models and few texts. Different from the paper:
the queries of all later tokens count, from `MIN_DISTANCE` tokens on, because nearer units stay anyway, where theirs are
those of the answer. The target `log_prob`, also ours, makes strong and weak queries comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import OptionError, check_known
from .retaining import RetainingHeads, observing

TARGETS = ("logit", "log_prob")
SMOOTHING = 0.0025
MIN_DISTANCE = 32  # least distance in tokens from a unit to the queries that count; for nearer ones it is a stabilizer


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How heads are trained."""

    hidden: int  # width of the first layer
    bias: bool
    rate: float
    betas: tuple[float, float]
    texts: int  # in a step
    warmup: float  # share of the steps with a rising rate, then linear to zero; without any, a cosine
    clip: float | None  # largest gradient of a weight
    sum_layers: bool  # add the smoothing up over layers, where the rest of the loss is a mean


OURS = FitSettings(128, True, 2e-3, (0.9, 0.999), 4, 0.0, None, False)
LOCRET = FitSettings(1024, False, 5e-4, (0.9, 0.95), 1, 2 / 3, 0.5, True)


@dataclass(frozen=True, slots=True)
class TrainingText:
    """The training data from one text, without the last tokens, whose later queries are all too near."""

    projected: Tensor  # float32 [layers, tokens, width]
    importance: Tensor  # float32 [layers, tokens, kv_heads]


def collect(model: Any, ids: Sequence[int], target: str = "logit") -> TrainingText:
    """Record the projections and importances of a text's units; raises OptionError for too short a text."""
    check_known("target", target, TARGETS)
    if len(ids) <= MIN_DISTANCE:
        raise OptionError(f"a text has {len(ids)} tokens; accepted: more than {MIN_DISTANCE}")
    kept = len(ids) - MIN_DISTANCE
    parts: list[tuple[Tensor, Tensor]] = []

    def observe(index: int, projected: Tensor, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor | None:
        wanted = importance(query[0], keys[0], query.shape[-1] ** -0.5, target)
        parts.append((projected[0, :kept].float(), wanted[:, :kept].T))
        return mask

    with observing(model, observe), torch.no_grad():
        model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return TrainingText(*map(torch.stack, zip(*parts, strict=True)))


def importance(query: Tensor, key: Tensor, scale: float, target: str = "logit") -> Tensor:
    """The importance of each unit, [kv_heads, tokens], from query [heads, tokens, dim] and key [kv_heads, tokens, dim].

    -inf for the last units, which have no query at a distance of `MIN_DISTANCE` tokens or more. `target` is of TARGETS.
    """
    (heads, tokens, _), kv_heads = query.shape, key.shape[0]
    logits = query.float() @ key.float().repeat_interleave(heads // kv_heads, dim=0).transpose(1, 2) * scale
    distance = torch.arange(tokens, device=key.device)[:, None] - torch.arange(tokens, device=key.device)
    if target == "log_prob":
        logits = logits.masked_fill(distance < 0, -torch.inf).log_softmax(dim=-1)
    highest = logits.masked_fill(distance < MIN_DISTANCE, -torch.inf).amax(dim=1)
    return highest.reshape(kv_heads, -1, tokens).amax(dim=1)


def fit(data: Sequence[TrainingText], steps: int = 400, seed: int = 0, settings: FitSettings = OURS) -> RetainingHeads:
    """Train heads on texts of one model; raises OptionError if `data` is empty.

    With biases, the initial weights of the first layers standardize their inputs.
    """
    if not data:
        raise OptionError("no training data; accepted: one or more texts of the model")
    layers, _, width = data[0].projected.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = RetainingHeads(layers, width, settings.hidden, data[0].importance.shape[2], settings.bias)
        if settings.bias:
            _initialize(heads, data)
        optimizer = torch.optim.AdamW(heads.parameters(), settings.rate, settings.betas, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(rate_share, steps=steps, warmup=settings.warmup)
        )
        for _ in range(steps):
            batch = [data[int(i)] for i in torch.randint(len(data), (settings.texts,))]
            loss = torch.stack([retaining_loss(heads, text, settings.sum_layers) for text in batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            if settings.clip is not None:
                nn.utils.clip_grad_value_(heads.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
    return heads.eval().requires_grad_(False)


def rate_share(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate that a step has; see `FitSettings.warmup`."""
    rising = warmup * steps
    if not rising:
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    return step / rising if step < rising else max(0.0, (steps - step) / (steps - rising))


def retaining_loss(heads: RetainingHeads, text: TrainingText, sum_layers: bool = False) -> Tensor:
    """The loss on one text: the mean over layers, units and heads; see `FitSettings` for `sum_layers`."""
    losses, smoothing = [], SMOOTHING * (len(text.projected) if sum_layers else 1)
    for layer, (projected, wanted) in enumerate(zip(text.projected, text.importance, strict=True)):
        scores = heads(layer, projected)
        losses.append(nn.functional.smooth_l1_loss(scores, wanted) + smoothing * scores.diff(dim=0).square().mean())
    return torch.stack(losses).mean()


def _initialize(heads: RetainingHeads, data: Sequence[TrainingText]) -> None:
    with torch.no_grad():
        for layer in range(heads.shape[0]):
            first: Any = heads.fc1[layer]
            last: Any = heads.fc2[layer]
            inputs = torch.cat([text.projected[layer] for text in data])
            first.weight /= inputs.std(dim=0).clamp(min=1e-3)
            first.bias -= first.weight @ inputs.mean(dim=0)
            last.bias.copy_(torch.cat([text.importance[layer] for text in data]).mean(dim=0))
