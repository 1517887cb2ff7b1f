"""From logits to tokens: processors, temperatures of single rows, sampling that does not notice who has left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....errors import ModelError
from .generation_rules import GenerationRules

_BLOCK = 64
"""Scores that are compared at a time: PyTorch's search for a maximum on CPUs is faster than that for its place."""


def argmax(scores: Tensor) -> Tensor:
    """The place of the first maximum in each row of scores [rows, vocabulary], as `argmax` has it, ties and NaN too."""
    rows, size = scores.shape
    if scores.device.type != "cpu" or size % _BLOCK or size <= _BLOCK:
        return scores.argmax(dim=-1)
    blocks = scores.reshape(rows, -1, _BLOCK)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    within = blocks[torch.arange(rows), block].argmax(dim=-1)
    return block * _BLOCK + within


def inverse_cdf(chances: Tensor, numbers: Tensor) -> Tensor:
    """The token of each row at whose chance its number in [0, 1) falls; chances [rows, vocabulary], numbers [rows, 1].

    Chances need not sum up to one, and what has none is never drawn. Raises ModelError where they are no numbers.
    """
    reached = chances.double().cumsum(dim=-1)  # faster than with cumsum's `dtype`
    if not bool(reached[:, -1].isfinite().all()):
        raise ModelError("the model's chances of a next token are no numbers: its weights or precision are at fault")
    return torch.searchsorted(reached, numbers * reached[:, -1:], right=True).squeeze(1)


class Sampler:
    """Picks a token for each row of a batch, and keeps the scores and logits that are to be recorded.

    prompt: ids [rows, length] of all rows there were at the start. inverse: see `Sampling`.
    """

    def __init__(self, rules: GenerationRules, prompt: Tensor) -> None:
        self.rules, self.prompt = rules, prompt
        self.inverse = False
        self.scores: list[Tensor] = []
        self.raw: list[Tensor] = []
        self._places: Tensor | None = None  # of the rows still in the batch, among all of them
        self._heat: Tensor | None = None  # [rows, 1], a row's own temperature over the batch's

    def warm(self, temperatures: Sequence[float | None]) -> None:
        """Give rows temperatures of their own; nothing to do where tokens are not sampled."""
        if self.rules.sample and any(t is not None for t in temperatures):
            ratios = [1.0 if t is None else t / self.rules.temperature for t in temperatures]
            self._heat = torch.tensor(ratios, device=self.prompt.device)[:, None]

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, given by their numbers in rising order."""
        self._places = rows if self._places is None else self._places[rows]
        if self._heat is not None:
            self._heat = self._heat[rows]

    def pick(self, logits: Tensor, ids: Tensor | None, greedy: Sequence[int]) -> Tensor:
        """Tokens [rows] from logits [rows, vocabulary]; ids are what processors see; `greedy` rows sample nothing."""
        rules = self.rules
        # What is recorded is copied: a view would keep the logits of a whole prompt alive.
        copy = rules.record_logits or rules.record_scores
        scores = logits.to(dtype=torch.float32, device=self.prompt.device, copy=copy)
        if rules.record_logits:
            self.raw.append(scores)
        if self._heat is not None:
            scores = scores / self._heat
        if rules.processors:
            scores = rules.processors(ids if ids is not None else self.prompt, scores)
        if rules.record_scores:
            self.scores.append(scores)
        tokens = self._draw(torch.softmax(scores, dim=-1)) if rules.sample else argmax(scores)
        if greedy:
            tokens[greedy] = argmax(logits[greedy])
        return tokens

    def _draw(self, chances: Tensor) -> Tensor:
        """Sample a token for each row still in the batch from chances [rows, vocabulary].

        Rows that have left draw as well, so that each row gets the random numbers it would get among all of them.
        """
        if self.inverse and chances.device.type != "mps":  # which has no numbers of 64 bits
            numbers = torch.rand(len(self.prompt), 1, dtype=torch.float64, device=chances.device)
            return inverse_cdf(chances, numbers if self._places is None else numbers[self._places])
        if self._places is None:
            return torch.multinomial(chances, num_samples=1).squeeze(1)
        among = chances.new_ones(len(self.prompt), chances.shape[1])
        among[self._places] = chances
        return torch.multinomial(among, num_samples=1).squeeze(1)[self._places]
