"""The likeliest token is the one that `argmax` finds, ties and what is no number included."""

from __future__ import annotations

import math

import pytest
import torch

from tersely.controller.engines.picking import likeliest


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
        assert likeliest(scores).tolist() == wanted.tolist()
        assert likeliest(scores.T.contiguous().T).tolist() == wanted.tolist()
