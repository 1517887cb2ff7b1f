"""The statistics against planted truths; every simulation is seeded and small, and each could fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersely.evaluation.stats import (
    Interval,
    auroc,
    lower_bound,
    mcnemar,
    needed_questions,
    paired_bootstrap,
    question_means,
    ratio_bootstrap,
    resampled_means,
    upper_bound,
    wilson,
)
from tersely.evaluation.verdict import GOOD, INFERIOR, OPEN, WASTEFUL, judge


def paired_runs(rng: np.random.Generator, n: int, loss: float, gain: float, rollouts: int = 1) -> np.ndarray:
    """Differences -1, 0, 1 of right answers, lost and gained at these rates: [questions, rollouts]."""
    return rng.choice([-1.0, 0.0, 1.0], p=[loss, 1 - loss - gain, gain], size=(n, rollouts))


def coverage(level: float, *, rollouts: int = 1, sims: int = 400) -> float:
    """How often the interval of a true difference of -0.04 holds it."""
    rng, hits = np.random.default_rng(5), 0
    for i in range(sims):
        found = paired_bootstrap(paired_runs(rng, 200, 0.10, 0.06, rollouts), level=level, resamples=600, seed=i)
        hits += found.low <= -0.04 <= found.high
    return hits / sims


@pytest.mark.parametrize("rollouts", [1, 3])
def test_the_bootstrap_covers_as_often_as_it_says(rollouts: int) -> None:
    assert 0.92 <= coverage(0.95, rollouts=rollouts) <= 0.985


def test_the_coverage_simulation_would_notice_a_wrong_level() -> None:
    assert coverage(0.80) < 0.90


def test_token_differences_are_covered_too() -> None:
    rng, hits = np.random.default_rng(2), 0
    for i in range(300):
        base = rng.gamma(2.0, 100.0, 150)
        found = paired_bootstrap(-0.3 * base + rng.normal(0, 30, 150), bounded=False, resamples=600, seed=i)
        hits += found.low <= -60.0 <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_agreement_on_few_questions_proves_nothing() -> None:
    found = paired_bootstrap(np.zeros(30))
    assert found.estimate == 0
    assert found.low < -0.05
    assert found.high > 0.05
    many = paired_bootstrap(np.zeros(3000))
    assert -0.002 < many.low < 0


def test_asking_again_does_not_make_questions_more() -> None:
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


def test_saving_is_a_ratio_of_sums() -> None:
    found = ratio_bootstrap([10.0, 30.0], [20.0, 60.0])
    assert found == Interval(0.5, 0.5, 0.5)
    assert ratio_bootstrap([[10.0, 30.0]], [[20.0, 20.0]]).estimate == 0


def test_clopper_pearson_is_exact() -> None:
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert lower_bound(100, 100) == pytest.approx(0.05 ** (1 / 100))
    assert (lower_bound(0, 9), upper_bound(9, 9)) == (0.0, 1.0)
    bound = upper_bound(3, 50)
    below = sum(math.comb(50, k) * bound**k * (1 - bound) ** (50 - k) for k in range(4))
    assert below == pytest.approx(0.05)
    assert lower_bound(3, 50) == pytest.approx(1 - upper_bound(47, 50))


def test_mcnemar_is_exact() -> None:
    assert mcnemar([-1.0] * 9 + [1.0] + [0.0] * 90) == pytest.approx(22 / 1024)
    assert mcnemar([0.0] * 10) == 1.0
    assert mcnemar([[-1.0, 0.0], [0.0, 0.0]]) == mcnemar([-1.0, 0.0])


def test_wilson_matches_its_published_example() -> None:
    found = wilson(0.5, 10)
    assert (found.low, found.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0.0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(1.0, 10).high == pytest.approx(1.0)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(60) < 0.4, rng.integers(0, 8, 60)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))
    assert math.isnan(auroc([1.0, 2.0], [True, True]))


def test_question_means_keep_single_rollouts_as_they_are() -> None:
    assert question_means([1.0, 0.0]).tolist() == [1.0, 0.0]
    assert question_means([[1.0, 0.0], [1.0, 1.0]]).tolist() == [0.5, 1.0]


def verdict_of(accuracy: np.ndarray, tokens: np.ndarray, margin: float, seed: int = 0) -> tuple[str, int | None]:
    means = question_means(accuracy)
    accuracy_ci = paired_bootstrap(means, resamples=600, seed=seed)
    tokens_ci = paired_bootstrap(tokens, bounded=False, resamples=600, seed=seed)
    found = judge(means, accuracy_ci, tokens, tokens_ci, margin)
    return found.word, found.needed_n


def test_the_verdict_is_seldom_wrong_at_the_edge_of_the_margin() -> None:
    rng, wrong, sims = np.random.default_rng(9), 0, 400
    saved = np.full(400, -50.0) + rng.normal(0, 5, 400)
    for i in range(sims):
        word, _ = verdict_of(paired_runs(rng, 400, 0.08, 0.05), saved, margin=0.03, seed=i)
        wrong += word == GOOD
    assert wrong / sims <= 0.05
    assert wrong > 0, "a verdict that never errs at the edge is not using its 2.5 %"


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


def test_a_saving_within_the_noise_stays_open() -> None:
    tokens = np.random.default_rng(0).normal(-1, 100, 1000)
    word, needed = verdict_of(np.zeros(1000), tokens, margin=0.01)
    assert word == OPEN
    assert needed is not None
    assert needed > 1000


def test_no_number_of_questions_decides_what_lies_on_the_line() -> None:
    assert needed_questions(0.3, 0.0) is None
    assert needed_questions(0.5, 0.1) == 197
