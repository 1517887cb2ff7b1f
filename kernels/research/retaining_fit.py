"""Retaining heads learnt from a frozen model's own texts, by regression on what later tokens asked of earlier ones.

As in Locret (arXiv 2410.01805): the importance of a unit is the highest logit, query times key before the softmax, that
any later query gives it in a head that shares it; the loss is smooth L1 between score and importance, plus `smoothing`
times the squared difference between the scores of neighbours. Ours: every later token asks, not those of an answer
alone, for here what is written is what is cached, and only from `AFAR` tokens on, for nearer units stay anyway.
The target `chance`, ours too, takes the logarithm of the probability in place of the logit, so that strong queries and
weak ones compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import OptionError, unknown
from .retaining import PROJECTIONS, RetainingHeads, attention_modules

TARGETS = ("logit", "chance")
SMOOTHING = 0.0025
AFAR = 32
"""Tokens from a unit to the queries that count; nearer ones find it among the stabilizers."""
_NAME = "tersely_listening"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one text teaches, without its last tokens, which no query looked at from afar.

    projected: float32 [layers, tokens, width]; importance: float32 [layers, tokens, kv_heads].
    """

    projected: Tensor
    importance: Tensor


def lesson(model: Any, ids: Sequence[int], target: str = "logit") -> Lesson:
    """Let the model read one text, and note what its layers projected and what was important in it.

    Raises OptionError for an unknown target or a text of no more than `AFAR` tokens, CapabilityError as `retaining`.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if len(ids) <= AFAR:
        raise OptionError(f"a text has {len(ids)} tokens; accepted: more than {AFAR}")
    modules = attention_modules(model)
    parts: list[list[Tensor]] = [[] for _ in modules]
    handles = [
        getattr(module, name).register_forward_hook(partial(_note, noted))
        for module, noted in zip(modules, parts, strict=True)
        for name in PROJECTIONS
    ]
    try:
        with _listening(model, target) as heard, torch.no_grad():
            model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    kept = len(ids) - AFAR
    projected = torch.stack([torch.cat(noted, dim=-1)[0, :kept].float() for noted in parts])
    return Lesson(projected, torch.stack([one[:, :kept].T for one in heard]))


def _note(noted: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    noted.append(output)


@contextmanager
def _listening(model: Any, target: str) -> Iterator[list[Tensor]]:
    """Collects the importances [kv_heads, tokens] of each layer that attends."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    heard: list[Tensor] = []
    stock: Any = sdpa_attention_forward

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any) -> Any:
        heard.append(importance(query[0], key[0], named["scaling"], target))
        return stock(module, query, key, value, mask, **named)

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield heard
    finally:
        model.set_attn_implementation(before)


def importance(query: Tensor, key: Tensor, scale: float, target: str = "logit") -> Tensor:
    """Of each unit [kv_heads, tokens], from queries [heads, tokens, dim] and keys [kv_heads, tokens, dim] of one text.

    -inf for the last units, from which no query is `AFAR` tokens or more away.
    """
    (heads, tokens, _), kv_heads = query.shape, key.shape[0]
    logits = query.float() @ key.float().repeat_interleave(heads // kv_heads, dim=0).transpose(1, 2) * scale
    away = torch.arange(tokens, device=key.device)[:, None] - torch.arange(tokens, device=key.device)
    if target == "chance":
        logits = logits.masked_fill(away < 0, -torch.inf).log_softmax(dim=-1)
    highest = logits.masked_fill(away < AFAR, -torch.inf).amax(dim=1)
    return highest.reshape(kv_heads, -1, tokens).amax(dim=1)


def fit(
    lessons: Sequence[Lesson], hidden: int = 128, steps: int = 400, rate: float = 2e-3, texts: int = 4, seed: int = 0
) -> RetainingHeads:
    """Learn heads from lessons of one model; each step takes some texts, and the rate falls along a cosine.

    Inputs are brought to mean 0 and deviation 1 by the first weights that the first layers start from. Raises
    OptionError for no lessons.
    """
    if not lessons:
        raise OptionError("there are no lessons; accepted: one or more texts of the model")
    layers, _, width = lessons[0].projected.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = RetainingHeads(layers, width, hidden, lessons[0].importance.shape[2])
        _start(heads, lessons)
        optimizer = torch.optim.AdamW(heads.parameters(), rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            chosen = [lessons[int(i)] for i in torch.randint(len(lessons), (texts,))]
            loss = torch.stack([retaining_loss(heads, one) for one in chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return heads.eval().requires_grad_(False)


def retaining_loss(heads: RetainingHeads, one: Lesson, smoothing: float = SMOOTHING) -> Tensor:
    """The loss on one text, the mean over layers, units and heads."""
    losses = []
    for layer, (projected, wanted) in enumerate(zip(one.projected, one.importance, strict=True)):
        scores = heads(layer, projected)
        losses.append(nn.functional.smooth_l1_loss(scores, wanted) + smoothing * scores.diff(dim=0).square().mean())
    return torch.stack(losses).mean()


def explained(heads: RetainingHeads, lessons: Sequence[Lesson]) -> list[float]:
    """Of each layer, the share of the variance of the importances that the scores explain: 1 is all of it."""
    shares = []
    for layer in range(len(lessons[0].projected)):
        wanted = torch.cat([one.importance[layer] for one in lessons])
        with torch.no_grad():
            left = torch.cat([heads(layer, one.projected[layer]) - one.importance[layer] for one in lessons])
        shares.append(1 - float(left.square().sum() / (wanted - wanted.mean(dim=0)).square().sum()))
    return shares


def _start(heads: RetainingHeads, lessons: Sequence[Lesson]) -> None:
    with torch.no_grad():
        for layer in range(heads.shape[0]):
            first: Any = heads.fc1[layer]
            last: Any = heads.fc2[layer]
            made = torch.cat([one.projected[layer] for one in lessons])
            first.weight /= made.std(dim=0).clamp(min=1e-3)
            first.bias -= first.weight @ made.mean(dim=0)
            last.bias.copy_(torch.cat([one.importance[layer] for one in lessons]).mean(dim=0))
