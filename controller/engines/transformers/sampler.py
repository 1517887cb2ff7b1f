"""What `generate` prepared, taken apart once, and sampling by it: how tokens are picked, and when a row ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, GenerationMode, MaxLengthCriteria

from ....errors import CapabilityError, ModelError

# Processors that never look at the ids, so that the ids need not be kept.
_BLIND = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
# Criteria that the host decides by itself.
_DECIDED_BY_HOST = (EosTokenCriteria, MaxLengthCriteria)
_OTHER_MODALITIES = ("pixel_", "image_", "input_features", "input_values", "mm_encoder")


class GenerationRules:
    """How tokens are picked and when a row ends, taken apart once so that each step does the least."""

    def __init__(
        self, processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig
    ) -> None:
        self.processors, self.sample = processors, bool(config.do_sample)
        self.temperature = float(config.temperature or 1.0)
        ends = [
            criterion.eos_token_id.flatten().tolist() for criterion in criteria if type(criterion) is EosTokenCriteria
        ]
        self.eos = frozenset(chain.from_iterable(ends))
        lengths = [criterion.max_length for criterion in criteria if type(criterion) is MaxLengthCriteria]
        self.max_length: float = min(lengths, default=float("inf"))
        self.criteria = StoppingCriteriaList([c for c in criteria if type(c) not in _DECIDED_BY_HOST])
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        pad = config._pad_token_tensor
        self.pad = int(pad) if pad is not None else 0
        record = bool(config.return_dict_in_generate)
        self.record_scores = record and bool(config.output_scores)
        self.record_logits = record and bool(config.output_logits)

    @property
    def reads_ids(self) -> bool:
        """Whether anything looks at the ids put out so far."""
        return bool(self.criteria) or any(type(processor) not in _BLIND for processor in self.processors)


def refuse_unsupported(model: Any, config: GenerationConfig, kwargs: dict[str, Any], watched: bool) -> None:
    """Raise CapabilityError for what this loop cannot do, before anything is computed."""
    if model.config.is_encoder_decoder:
        raise CapabilityError(f"{type(model).__name__} is an encoder-decoder; only decoder-only models can be steered")
    extra = sorted(name for name in kwargs if kwargs[name] is not None and name.startswith(_OTHER_MODALITIES))
    if extra or kwargs.get("inputs_embeds") is not None:
        raise CapabilityError(f"only token ids can be decoded, but got {', '.join(extra) or 'inputs_embeds'}")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise CapabilityError(
            f"generation mode {mode.value!r} cannot be steered; accepted: greedy and sampling (num_beams=1)"
        )
    flags = ["output_attentions", "output_hidden_states"]
    flags += ["output_scores", "output_logits"] if watched else []
    if config.return_dict_in_generate and (asked := [flag for flag in flags if getattr(config, flag)]):
        hint = "; scores and logits need control off" if watched else ""
        raise CapabilityError(f"{', '.join(asked)} cannot be returned by this loop{hint}; leave it out")


_BLOCK = 64  # scores compared at a time: on CPUs PyTorch finds a maximum faster than its position


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

    `prompt` are the ids [rows, length] of all rows at the start, `temperatures` are per row, in place of the batch's,
    and `inverse` is `SamplingParams.inverse_cdf`.
    """

    def __init__(
        self, rules: GenerationRules, prompt: Tensor, temperatures: Sequence[float | None] = (), inverse: bool = False
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
        """Draw a token per row; rows that have left draw too, so that each row gets the numbers of the full batch."""
        if self.inverse and probabilities.device.type != "mps":  # which has no 64-bit floats
            numbers = torch.rand(len(self.prompt), 1, dtype=torch.float64, device=probabilities.device)
            return inverse_cdf(probabilities, numbers if self._rows is None else numbers[self._rows])
        if self._rows is None:
            return torch.multinomial(probabilities, num_samples=1).squeeze(1)
        all_rows = probabilities.new_ones(len(self.prompt), probabilities.shape[1])
        all_rows[self._rows] = probabilities
        return torch.multinomial(all_rows, num_samples=1).squeeze(1)[self._rows]
