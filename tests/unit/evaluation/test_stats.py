"""The statistics on small cases that can be checked by hand; `test_planted_truths.py` has the simulations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersely.evaluation.bench.compare import GOOD, INFERIOR, MIN_QUESTIONS, OPEN, WASTEFUL, judge
from tersely.evaluation.stats import (
    Interval,
    area,
    common_range,
    iso_saving,
    mcnemar,
    needed_questions,
    paired_bootstrap,
    question_means,
    rate_interval,
    ratio_bootstrap,
    reliability,
    resampled_means,
    studentized_bootstrap,
    wilson,
)


def paired_runs(rng: np.random.Generator, n: int, loss: float, gain: float, rollouts: int = 1) -> np.ndarray:
    """Differences -1, 0, 1 of right answers, lost and gained at these rates: [questions, rollouts]."""
    return rng.choice([-1.0, 0.0, 1.0], p=[loss, 1 - loss - gain, gain], size=(n, rollouts))


def test_agreement_on_few_questions_leaves_a_wide_interval() -> None:
    found = paired_bootstrap(np.zeros(30))
    assert found.estimate == 0
    assert found.low < -0.05
    assert found.high > 0.05
    many = paired_bootstrap(np.zeros(3000))
    assert -0.002 < many.low < 0


def test_rollouts_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=80)
    once, thrice = paired_bootstrap(values), paired_bootstrap(np.repeat(values[:, None], 3, axis=1))
    assert once == thrice


def test_columns_are_resampled_together_and_by_seed() -> None:
    rng = np.random.default_rng(1)
    column = rng.normal(size=50)
    means = resampled_means(np.stack([column, 2 * column], axis=1), 500, seed=3)
    assert np.allclose(means[:, 1], 2 * means[:, 0])
    assert np.array_equal(means, resampled_means(np.stack([column, 2 * column], axis=1), 500, seed=3))
    assert not np.array_equal(means, resampled_means(np.stack([column, 2 * column], axis=1), 500, seed=4))


def test_a_studentized_interval_is_finite_for_nearly_equal_values() -> None:
    assert studentized_bootstrap(np.full(5, -3.0)) == Interval(-3.0, -3.0, -3.0)
    found = studentized_bootstrap([0.0] * 30 + [-31.0], resamples=500)
    assert found.estimate == -1
    assert -10 < found.low < -2
    assert 0 < found.high < 10


def test_a_shift_and_a_scale_of_tokens_shift_and_scale_their_interval() -> None:
    values = np.random.default_rng(0).gamma(2, 100, 60)
    once, moved = studentized_bootstrap(values, resamples=500), studentized_bootstrap(7 - 2 * values, resamples=500)
    assert moved.low == pytest.approx(7 - 2 * once.high)
    assert moved.high == pytest.approx(7 - 2 * once.low)


def test_saving_is_a_ratio_of_sums() -> None:
    found = ratio_bootstrap([10.0, 30.0], [20.0, 60.0])
    assert found == Interval(0.5, 0.5, 0.5)
    assert ratio_bootstrap([[10.0, 30.0]], [[20.0, 20.0]]).estimate == 0


def test_mcnemar_is_exact() -> None:
    assert mcnemar([-1.0] * 9 + [1.0] + [0.0] * 90) == pytest.approx(22 / 1024)
    assert mcnemar([0.0] * 10) == 1.0
    assert mcnemar([[-1.0, 0.0], [0.0, 0.0]]) == mcnemar([-1.0, 0.0])


def test_wilson_matches_its_published_example() -> None:
    found = wilson(0.5, 10)
    assert (found.low, found.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0.0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(1.0, 10).high == pytest.approx(1.0)


def test_rollouts_narrow_a_rate_by_their_effective_number() -> None:
    answers = np.random.default_rng(0).random((200, 1)) < 0.6
    once = rate_interval(answers)
    assert once == wilson(answers.mean(), 200)
    assert rate_interval(np.repeat(answers, 4, axis=1)).low == pytest.approx(once.low)
    fresh = np.random.default_rng(1).random((200, 4)) < 0.6
    assert rate_interval(fresh).high - rate_interval(fresh).low < 0.6 * (once.high - once.low)
    assert rate_interval(np.ones((10, 4))) == wilson(1.0, 10)


def test_question_means_keep_single_rollouts_as_they_are() -> None:
    assert question_means([1.0, 0.0]).tolist() == [1.0, 0.0]
    assert question_means([[1.0, 0.0], [1.0, 1.0]]).tolist() == [0.5, 1.0]


def verdict_of(accuracy: np.ndarray, tokens: np.ndarray, margin: float, seed: int = 0) -> tuple[str, int | None]:
    means = question_means(accuracy)
    accuracy_ci = paired_bootstrap(means, resamples=600, seed=seed)
    tokens_ci = studentized_bootstrap(tokens, resamples=600, seed=seed)
    found = judge(means, accuracy_ci, tokens, tokens_ci, margin)
    return found.word, found.needed_n


def test_the_needed_number_decides_most_runs() -> None:
    rng = np.random.default_rng(4)
    few = np.array([-1.0] * 4 + [1.0] * 4 + [0.0] * 92)
    word, needed = verdict_of(few, np.full(100, -9.0), margin=0.03)
    assert word == OPEN
    assert needed is not None
    decided = 0
    for i in range(100):
        more = paired_runs(rng, needed, 0.04, 0.04)
        decided += verdict_of(more, np.full(needed, -9.0), margin=0.03, seed=i)[0] == GOOD
    assert 0.7 <= decided / 100 <= 0.97


@pytest.mark.parametrize(
    ("loss", "gain", "token_change", "word"),
    [(0.0, 0.0, -50.0, GOOD), (0.2, 0.0, -50.0, INFERIOR), (0.0, 0.0, 20.0, WASTEFUL), (0.3, 0.3, -50.0, OPEN)],
)
def test_verdicts_of_plain_cases(loss: float, gain: float, token_change: float, word: str) -> None:
    rng = np.random.default_rng(1)
    tokens = token_change + rng.normal(0, 3, 1000)
    assert verdict_of(paired_runs(rng, 1000, loss, gain), tokens, margin=0.01)[0] == word


@pytest.mark.parametrize(("n", "expected"), [(4, (OPEN, MIN_QUESTIONS)), (MIN_QUESTIONS, (WASTEFUL, None))])
def test_arms_with_the_same_tokens_save_nothing_at_the_least_number_of_questions(
    n: int, expected: tuple[str, int | None]
) -> None:
    assert verdict_of(np.zeros(n), np.zeros(n), margin=0.01) == expected


def test_a_saving_within_the_noise_stays_open() -> None:
    tokens = np.random.default_rng(0).normal(-1, 100, 1000)
    word, needed = verdict_of(np.zeros(1000), tokens, margin=0.01)
    assert word == OPEN
    assert needed is not None
    assert needed > 1000


def test_no_number_of_questions_decides_a_difference_at_the_margin() -> None:
    assert needed_questions(0.3, 0.0) is None
    assert needed_questions(0.5, 0.1) == 197


def test_an_interval_that_ends_at_the_margin_is_inconclusive() -> None:
    tokens = np.full(10, -5.0)
    assert judge(np.zeros(10), Interval(0, -0.01, 0.01), tokens, Interval(-5, -6, -4), 0.01).word == OPEN
    assert judge(np.zeros(10), Interval(0, -0.0099, 0.01), tokens, Interval(-5, -6, -4), 0.01).word == GOOD


def test_area_is_the_mean_of_the_best_so_far_over_log_tokens() -> None:
    points = [(1000, 0.5), (10, 0.2), (100, 0.6)]  # the most expensive is worse than the one before, so it adds nothing
    assert area(points, 10, 1000) == pytest.approx((0.4 + 0.6) / 2)
    assert area(points, 100, 10_000) == pytest.approx(0.6)
    assert area([(10, 0.2), (10, 0.4), (1000, 0.4)], 1, 1000) == pytest.approx(0.4)


def test_families_share_the_range_that_all_reach() -> None:
    assert common_range([(10, 0.1), (300, 0.5)], [(40, 0.3), (900, 0.6)]) == (40, 300)
    assert common_range([(10, 0.1), (30, 0.5)], [(40, 0.3), (900, 0.6)]) is None


BUDGETS = [np.full(100, tokens) for tokens in (10.0, 100.0, 1000.0)]
REACHED = [(np.arange(100) < right).astype(float) for right in (20, 60, 80)]


def saving_at(right: int, tokens: float = 50.0) -> dict[str, Any]:
    ours = (np.arange(100) < right).astype(float)
    return iso_saving(BUDGETS, REACHED, np.full(100, tokens), ours, resamples=400)


def test_iso_saving_reads_the_curve_at_our_accuracy() -> None:
    for right, needed in ((20, 10.0), (40, 10**1.5), (60, 100.0), (70, 10**2.5)):
        found = saving_at(right)
        assert found["iso_saving"] == pytest.approx(1 - 50 / needed)
    low, high = saving_at(70)["iso_saving_ci"]
    assert low < 1 - 50 / 10**2.5 < high < 1


def test_beyond_the_curve_a_saving_is_a_lower_bound_and_below_it_none() -> None:
    assert saving_at(95) == {"iso_saving": pytest.approx(0.95), "iso_saving_ci": [pytest.approx(0.95), 1.0]}
    assert saving_at(19) == {"iso_saving": None, "iso_saving_ci": None}
    assert iso_saving([], [], np.ones(5), np.ones(5)) == {"iso_saving": None, "iso_saving_ci": None}


def test_reliability_is_the_distance_of_confidence_from_accuracy() -> None:
    found = reliability([0.95, 0.85, 0.81, 1.0, 0.05], [True, True, False, True, False])
    assert [b["n"] for b in found["bins"]] == [1, 2, 2]
    assert found["bins"][1] == {"confidence": pytest.approx(0.83), "accuracy": 0.5, "n": 2}
    assert found["ece"] == pytest.approx((0.05 + 2 * 0.33 + 2 * 0.025) / 5)
    assert found["auroc"] == 1.0
    assert reliability([0.5, 0.6], [True, True])["auroc"] is None
