"""Shared statistics: exact bounds, AUROC, calibration error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersely.probes.stats import (
    auroc,
    binomial_lower_bound,
    binomial_upper_bound,
    calibration_bins,
    expected_calibration_error,
    measure_quality,
)


def test_bounds_are_exact() -> None:
    assert binomial_upper_bound(0, 10, 0.1) == pytest.approx(1 - 0.1**0.1)
    assert binomial_upper_bound(10, 10, 0.1) == 1
    assert binomial_lower_bound(0, 10, 0.1) == 0
    assert binomial_upper_bound(1, 2, 0.25) == pytest.approx(math.sqrt(0.75))  # 1 - p^2 = 0.25
    for events, n, delta in ((1, 20, 0.1), (9, 1000, 0.1), (40, 300, 0.01)):
        p = binomial_upper_bound(events, n, delta)
        chance = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(events + 1))
        assert chance == pytest.approx(delta)
        q = binomial_lower_bound(events, n, delta)
        chance = sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(events, n + 1))
        assert chance == pytest.approx(delta)


def test_bounds_of_a_fraction_of_events_lie_between_those_of_whole_numbers() -> None:
    assert binomial_upper_bound(3, 50, 0.05) < binomial_upper_bound(3.5, 50, 0.05) < binomial_upper_bound(4, 50, 0.05)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))
    assert math.isnan(auroc([True, True], [1.0, 2.0]))


@pytest.mark.parametrize("equal_width", [True, False])
def test_calibration_error_is_the_mean_distance_of_confidence_from_accuracy(equal_width: bool) -> None:
    labels, confidences = [True, True, False, True, False], [0.95, 0.85, 0.81, 1.0, 0.05]
    bins = calibration_bins(labels, confidences, equal_width=equal_width)
    assert [b.n for b in bins] == ([1, 2, 2] if equal_width else [1] * 5)
    by_hand = (0.05 + 2 * 0.33 + 2 * 0.025) / 5 if equal_width else (0.05 + 0.15 + 0.81 + 0 + 0.05) / 5
    assert expected_calibration_error(bins) == pytest.approx(by_hand)


def test_quality_by_hand() -> None:
    labels = np.array([False] * 50 + [True] * 50)
    perfect = measure_quality(labels, labels.astype(float))
    assert (perfect.auroc, perfect.brier, perfect.ece, perfect.n, perfect.share) == (1, 0, 0, 100, 0.5)
    constant = measure_quality(labels, np.full(100, 0.8))
    assert (constant.auroc, constant.low < 0.5 < constant.high) == (0.5, True)
    assert constant.brier == pytest.approx(0.5 * 0.04 + 0.5 * 0.64)
    assert measure_quality(np.resize([False, True], 100), np.full(100, 0.8)).ece == pytest.approx(0.3)
    assert np.isnan(measure_quality(labels[:50], np.zeros(50)).auroc)
