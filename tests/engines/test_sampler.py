"""The likeliest token is the one that `argmax` finds, ties and NaN included; tokens drawn come by their chances."""

from __future__ import annotations

import math

import pytest
import torch

from tersely.controller.engines.transformers.sampler import argmax, inverse_cdf
from tersely.errors import ModelError

from ..support.refusals import refused


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 640, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_first_of_the_largest(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    for levels in (2, 5, 10_000):  # few levels: many ties
        scores = torch.randint(levels, (17, size), generator=generator).to(dtype)
        scores[3] = -math.inf
        scores[5, size // 2] = math.inf
        scores[7, size // 3 :: 7] = math.nan
        wanted = scores.argmax(dim=-1)
        assert argmax(scores).tolist() == wanted.tolist()
        assert argmax(scores.T.contiguous().T).tolist() == wanted.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_drawn_by_their_chances_and_what_has_none_never_is(dtype: torch.dtype) -> None:
    chances = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0], [4.0, 0.0, 0.0, 0.0, 0.0, 12.0]], dtype=dtype)
    numbers = (torch.arange(4096, dtype=torch.float64) / 4096).repeat(2, 1)
    for row, counts in enumerate(([0, 1024, 0, 2048, 1024, 0], [1024, 0, 0, 0, 0, 3072])):
        tokens = inverse_cdf(chances[row].expand(4096, 6), numbers[row][:, None])
        assert torch.bincount(tokens, minlength=6).tolist() == counts
        assert bool((tokens.diff() >= 0).all())


def test_the_last_number_below_one_draws_the_last_token_that_has_a_chance() -> None:
    chances = torch.softmax(torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)), dim=-1)
    chances[:, 4000:] = 0
    last = torch.full((64, 1), 1 - 2**-52, dtype=torch.float64)
    assert bool((inverse_cdf(chances, last) < 4000).all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_chances_that_are_no_numbers_draw_nothing(value: float) -> None:
    chances = torch.tensor([[0.5, 0.5], [value, 0.5]])
    with refused(ModelError, "logits_not_finite"):
        inverse_cdf(chances, torch.zeros(2, 1, dtype=torch.float64))
