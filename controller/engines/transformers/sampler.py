"""From logits to tokens: processors, temperatures, and draws that do not depend on which rows have ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....errors import ModelError
from .generation_rules import GenerationRules

_BLOCK = 64
"""Scores compared at a time: on CPUs PyTorch finds a maximum faster than its position."""


def argmax(scores: Tensor) -> Tensor:
    """The position of the first maximum in each row of scores [rows, vocabulary], defined for ties and NaN too."""
    rows, size = scores.shape
    if scores.device.type != "cpu" or size % _BLOCK or size <= _BLOCK:
        return scores.argmax(dim=-1)
    blocks = scores.reshape(rows, -1, _BLOCK)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    within = blocks[torch.arange(rows), block].argmax(dim=-1)
    return block * _BLOCK + within


def inverse_cdf(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Draw one token per row: probabilities [rows, vocabulary], numbers [rows, 1] in [0, 1).

    Probabilities need not sum to one, and a token without any is never drawn; if they are not finite it is a
    ModelError.
    """
    cumulative = probabilities.double().cumsum(dim=-1)  # faster than with cumsum's `dtype`
    if not bool(cumulative[:, -1].isfinite().all()):
        raise ModelError("logits contain NaN or inf; check the model's weights or dtype", code="logits_not_finite")
    return torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).squeeze(1)


class Sampler:
    """Samples a token for each row of a batch, and records the scores and logits that `generate` may return.

    Args:
        prompt: ids [rows, length] of all rows at the start.
        temperatures: per row, in place of the batch's.
        inverse: see `SamplingParams.inverse_cdf`.
    """

    def __init__(
        self,
        rules: GenerationRules,
        prompt: Tensor,
        temperatures: Sequence[float | None] = (),
        inverse: bool = False,
    ) -> None:
        self.rules, self.prompt, self.inverse = rules, prompt, inverse
        self.scores: list[Tensor] = []
        self.raw_logits: list[Tensor] = []
        self._rows: Tensor | None = None  # the rows still in the batch, among all of them
        self._ratios: Tensor | None = None  # [rows, 1], a row's temperature over the batch's
        if rules.sample and any(t is not None for t in temperatures):
            ratios = [1.0 if t is None else t / rules.temperature for t in temperatures]
            self._ratios = torch.tensor(ratios, device=prompt.device)[:, None]

    def select_rows(self, rows: Tensor) -> None:
        """Keep only these rows, in rising order."""
        self._rows = rows if self._rows is None else self._rows[rows]
        if self._ratios is not None:
            self._ratios = self._ratios[rows]

    def sample(self, logits: Tensor, ids: Tensor | None, greedy: Sequence[int]) -> Tensor:
        """Tokens [rows] from logits [rows, vocabulary]; processors see `ids`, and `greedy` rows are not sampled."""
        rules = self.rules
        # What is recorded is copied: a view would keep the logits of a whole prompt alive.
        copy = rules.record_logits or rules.record_scores
        scores = logits.to(dtype=torch.float32, device=self.prompt.device, copy=copy)
        if rules.record_logits:
            self.raw_logits.append(scores)
        if self._ratios is not None:
            scores = scores / self._ratios
        if rules.processors:
            scores = rules.processors(ids if ids is not None else self.prompt, scores)
        if rules.record_scores:
            self.scores.append(scores)
        tokens = self._draw(torch.softmax(scores, dim=-1)) if rules.sample else argmax(scores)
        if greedy:
            tokens[greedy] = argmax(logits[greedy])
        return tokens

    def to_host(self, tokens: Tensor, ids: Tensor | None) -> tuple[list[int], list[bool] | None]:
        """Fetch the tokens and, if there are criteria, per row whether one is met: one wait for the device."""
        if not self.rules.criteria:
            return tokens.tolist(), None
        stops = self.rules.criteria(ids, tuple(self.scores) if self.rules.record_scores else None)
        both = torch.stack((tokens, stops.to(tokens.device, tokens.dtype))).tolist()
        return both[0], [bool(stop) for stop in both[1]]

    def _draw(self, probabilities: Tensor) -> Tensor:
        """Draw a token per remaining row.

        Rows that have left draw as well, so that each row gets the random numbers it would get in the full batch.
        """
        if self.inverse and probabilities.device.type != "mps":  # which has no 64-bit floats
            numbers = torch.rand(len(self.prompt), 1, dtype=torch.float64, device=probabilities.device)
            return inverse_cdf(probabilities, numbers if self._rows is None else numbers[self._rows])
        if self._rows is None:
            return torch.multinomial(probabilities, num_samples=1).squeeze(1)
        all_rows = probabilities.new_ones(len(self.prompt), probabilities.shape[1])
        all_rows[self._rows] = probabilities
        return torch.multinomial(all_rows, num_samples=1).squeeze(1)[self._rows]
