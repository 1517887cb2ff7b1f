"""The interval of a cost-of-pass, and E3 against the worked examples of its paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersely.evaluation.economics.costs import e3, set_cost_of_pass

# --- cost-of-pass


def test_the_interval_of_a_set_covers_and_may_be_open() -> None:
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        right = rng.random(120) < 0.4
        costs = np.where(right, 1.0, 3.0) + rng.normal(0, 0.1, 120)
        found = set_cost_of_pass(costs.tolist(), right.tolist(), resamples=400, seed=seed)
        hits += found.low <= (0.4 * 1 + 0.6 * 3) / 0.4 <= found.high
    assert 0.9 <= hits / 200 <= 0.99
    open_end = set_cost_of_pass([1.0] * 8, [1, 0, 0, 0, 0, 0, 0, 0])
    assert (open_end.estimate, open_end.high) == (8.0, math.inf)
    assert 1.0 < open_end.low < 8.0


# --- E3


def test_e3_takes_percent_and_reproduces_the_reported_gains() -> None:
    assert e3(0.9481, 2381) == pytest.approx(94.81**2 / 2381)
    assert e3(0.4, 10_000) == pytest.approx(0.16)
    # TravelPlanner, 0.16 before: the two versions of the paper report +187.5 % and +193.8 %.
    for score, reported in ((0.46, 1.875), (0.47, 1.938)):
        accuracy = math.sqrt(score * 10_000) / 100
        assert e3(accuracy, 10_000) / e3(0.4, 10_000) - 1 == pytest.approx(reported, abs=6e-4)
    assert e3(0.5, 100) == 2 * e3(0.5, 200) == 4 * e3(0.25, 100)
    assert (e3(0.0, 0), e3(1.0, 0)) == (0.0, math.inf)
