"""R-KV (arXiv 2505.24133): scores worked out by hand and in plain loops.

The weight is the paper's, the other constants are those of the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tersely.kernels.research.retaining import RKV, RetainingLayer

KEYS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])[None, None]
"""The first, third and fourth repeat each other, the second and the last."""
QUERIES = math.sqrt(2) * torch.tensor([[math.log(2), 0.0], [0.0, math.log(4)]])[None, :, None]
"""Two heads of the last token: the first four keys get 2, 4, 2 and 4 twelfths of the attention."""
SMALL = RKV(window=1, buffer=2, pooled=3)


def test_constants() -> None:
    assert RKV() == RKV(weight=0.1, window=8, buffer=128, pooled=7, similar=0.5)


@pytest.mark.parametrize(("pooled", "twelfths"), [(1, (2, 4, 2, 4)), (3, (4, 4, 4, 4))])
def test_scores_by_hand(pooled: int, twelfths: tuple[int, ...]) -> None:
    """The first key is repeated by the third and fourth, but each row leaves out the latest; the others by none."""
    rkv = replace(SMALL, pooled=pooled)
    found = rkv.score(QUERIES, KEYS, torch.zeros(1, 1, 5, dtype=torch.bool))[0, 0, :4]
    repeated = [math.exp(0.4), 1.0, math.exp(0.2), 1.0]
    total = sum(repeated) + 1
    wanted = [0.1 * share / 12 - 0.9 * one / total for share, one in zip(twelfths, repeated, strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_units_are_evicted_once_the_buffer_is_full() -> None:
    layer = RetainingLayer(3, 1, joint=SMALL)
    for at in range(5):
        key = KEYS[:, :, at : at + 1]
        layer.update(key, key)
        layer.evict(torch.zeros(1, 1, 1), QUERIES)
        assert layer.keys.shape[2] == (3 if at == 4 else at + 1)
    assert layer.positions.tolist() == [[[1, 3, 4]]], "of what is repeated, the latest stays"


def by_loops(query: Tensor, keys: Tensor, shown: list[int], rkv: RKV) -> list[float]:
    """The scores of one key head's real units, without the window; query [heads, window, dim], keys [units, dim]."""
    past, scale = shown[: -rkv.window], keys.shape[1] ** -0.5
    weights = [
        torch.tensor([max(float(head[step] @ keys[unit]) * scale for head in query) for unit in past]).softmax(0)
        for step in range(rkv.window)
    ]
    mean = [float(torch.stack(weights)[:, i].mean()) for i in range(len(past))]
    half = rkv.pooled // 2
    importance = [max(mean[max(0, i - half) : i + half + 1]) for i in range(len(past))]
    repeats = dict.fromkeys(shown, 0.0)
    for row in shown:
        cosines = {c: float(torch.cosine_similarity(keys[row], keys[c], 0)) for c in shown if c != row}
        latest = max((c for c, cosine in cosines.items() if cosine > rkv.similar), default=0)
        for column, cosine in cosines.items():
            repeats[column] += cosine / len(shown) if column != latest else 0.0
    redundancy = torch.tensor([repeats[unit] for unit in shown]).softmax(0).tolist()
    pairs = zip(importance, redundancy, strict=False)
    return [rkv.weight * important - (1 - rkv.weight) * repeated for important, repeated in pairs]


def test_scores_equal_those_of_plain_loops_with_padding_left_out() -> None:
    chance, rkv = torch.Generator().manual_seed(2), RKV(window=3, pooled=5, weight=0.7)
    query = torch.randn(2, 4, 3, 8, generator=chance)
    keys = torch.randn(2, 2, 14, 8, generator=chance) + 0.6
    padding = torch.zeros(2, 2, 14, dtype=torch.bool)
    padding[1, :, :4] = True
    found = rkv.score(query, keys, padding)
    for row, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shown = [unit for unit in range(14) if not padding[row, head, unit]]
        wanted = by_loops(query[row, 2 * head : 2 * head + 2], keys[row, head], shown, rkv)
        assert found[row, head, shown[0] : 11].tolist() == pytest.approx(wanted, abs=1e-5)
