"""What a model gives the tokens of texts that grow: what it has read of one before is not read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

from ..engines.transformers.model_runner import can_be_ragged
from .engine_helper import PrefixKey


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Of each token from some place on: the chance that the model gives it, and what it gives the highest.

    tokens: how many were read for that.
    """

    chances: Sequence[float]
    likeliest: Sequence[int]
    tokens: int


class CachedScorer:
    """Reads texts with one model, and keeps the keys and values of those that grow, where they can be cut."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cuts = can_be_ragged(model)
        self._known: WeakKeyDictionary[PrefixKey, tuple[list[int], Any]] = WeakKeyDictionary()

    @torch.no_grad()
    def read(self, text: PrefixKey | None, ids: Sequence[int], start: int) -> ScoredTokens:
        """What the model makes of a text's tokens from `start`, at least 1, on."""
        known, cache = (None if text is None else self._known.get(text)) or ([], self._empty())
        common = min(common_prefix_length(known, ids), start - 1)
        if common < len(known):
            cache.crop(common - len(known))
        fed = torch.tensor([list(ids[common:])], device=self.model.device)
        keep = len(ids) - start + 1
        logits = self.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0, :-1].float()
        if text is not None and self._cuts:
            self._known[text] = (list(ids), cache)
        wanted = torch.tensor(list(ids[start:]), device=logits.device)
        chances = logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0].exp()
        return ScoredTokens(chances.tolist(), logits.argmax(-1).tolist(), fed.size(1))

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config(decoder=True))


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
