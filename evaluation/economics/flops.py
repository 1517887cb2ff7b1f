"""FLOPs of a generation, prefill and decoding apart: the measure in which tokens of different models can be added.

A dense decoder spends two FLOPs on each matrix parameter and token, and in attention four on each dimension of a head,
head, layer and position attended to. Norms, rotations, softmax and sampling are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import OptionError
from .model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs by phase."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """Both phases."""
        return self.prefill + self.decode


def prefill_flops(shape: ModelShape, prompt: int, cached: int = 0) -> float:
    """FLOPs of reading a prompt, its first `cached` tokens from a cache; logits are made for the last token only.

    Tokens that a splice makes the engine read again are such a prompt: the text so far, cached up to the splice.
    """
    if not 0 <= cached <= prompt:
        raise OptionError(f"{cached} of {prompt} prompt tokens are cached; accepted: 0 to all of them")
    if cached == prompt:
        return 0.0
    return 2.0 * shape.blocks * (prompt - cached) + 2.0 * shape.head + _attention(shape, cached + 1, prompt)


def decode_flops(shape: ModelShape, prompt: int, output: int) -> float:
    """FLOPs of `output` tokens after a prompt; the first comes with the prompt and costs nothing more."""
    steps = max(output - 1, 0)
    return 2.0 * (shape.blocks + shape.head) * steps + _attention(shape, prompt + 1, prompt + steps)


def generation_flops(shape: ModelShape, prompt: int, output: int, cached: int = 0) -> Flops:
    """FLOPs of one generation."""
    return Flops(prefill_flops(shape, prompt, cached), decode_flops(shape, prompt, output))


def token_flops(shape: ModelShape, context: int) -> float:
    """FLOPs of decoding one token at this length."""
    return 2.0 * (shape.blocks + shape.head) + _attention(shape, context, context)


def as_tokens(flops: float, shape: ModelShape, context: int) -> float:
    """What FLOPs, a helper's or verifier's, are worth in tokens that a model decodes at this length.

    Compute only: a verifier's prefill, which is cheap in time, weighs here as much as decoding.
    """
    return flops / token_flops(shape, context)


def _attention(shape: ModelShape, first: int, last: int) -> float:
    """FLOPs of attention of the tokens at positions `first` to `last` (from 1)."""
    positions = sum(_up_to(last, window) - _up_to(first - 1, window) for window in shape.windows)
    return 4.0 * shape.heads * shape.head_dim * positions


def _up_to(last: int, window: float) -> float:
    """The sum of min(position, window) over positions 1 to `last`."""
    if last <= window:
        return last * (last + 1) / 2
    return window * (window + 1) / 2 + (last - window) * window
