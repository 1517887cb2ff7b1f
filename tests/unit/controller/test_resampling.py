"""Resampling with an imperfect verifier, against the worked example of its paper and against sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersely.controller.sampling.research.rules import (
    ProblemClass,
    VerifierRates,
    accuracy_ceiling,
    accuracy_limit,
    attempt_value,
    optimal_attempts,
    policy_outcome,
)
from tersely.errors import OptionError

LLAMA_8B = [ProblemClass(0.58, 0.87), ProblemClass(0.42, 0.13)]
HUMAN_EVAL = VerifierRates(true_positive=1.0, false_positive=0.25)


def test_the_worked_example() -> None:
    assert accuracy_limit(0.87, HUMAN_EVAL) == pytest.approx(0.964, abs=5e-4)
    assert accuracy_limit(0.13, HUMAN_EVAL) == pytest.approx(0.374, abs=5e-4)
    assert accuracy_ceiling(LLAMA_8B, HUMAN_EVAL) == pytest.approx(0.716, abs=5e-4)
    assert attempt_value(1, LLAMA_8B, HUMAN_EVAL, penalty=4) == pytest.approx(0.118, abs=5e-4)
    assert attempt_value(2, LLAMA_8B, HUMAN_EVAL, penalty=4) == pytest.approx(-0.161, abs=5e-4)
    assert optimal_attempts(LLAMA_8B, HUMAN_EVAL, penalty=4) == 1


def test_costlier_false_passes_mean_fewer_attempts() -> None:
    best = [optimal_attempts(LLAMA_8B, HUMAN_EVAL, penalty=p) for p in (1, 2, 4, 8)]
    assert best[-1] == 0
    numbers = [b for b in best if b is not None]
    assert numbers == sorted(numbers, reverse=True)
    assert optimal_attempts(LLAMA_8B, HUMAN_EVAL, penalty=0) is None
    assert optimal_attempts(LLAMA_8B, VerifierRates(1.0, 0.0), penalty=8) is None, (
        "a perfect verifier is worth waiting for"
    )


def test_the_optimum_is_where_the_sum_of_values_peaks() -> None:
    kinds, verifier = (
        [ProblemClass(0.3, 0.6), ProblemClass(0.4, 0.2), ProblemClass(0.3, 0.02)],
        VerifierRates(0.9, 0.05),
    )
    best = optimal_attempts(kinds, verifier, penalty=4)
    values = np.cumsum([attempt_value(k, kinds, verifier, 4) for k in range(1, 200)])
    assert best == int(values.argmax()) + 1
    assert 1 < best < 199


def test_the_formulas_agree_with_sampling() -> None:
    rng, rate, verifier, trials = np.random.default_rng(3), 0.3, VerifierRates(0.8, 0.2), 40_000
    right = rng.random((trials, 3)) < rate
    passed = rng.random((trials, 3)) < np.where(right, 0.8, 0.2)
    any_pass, first = passed.any(axis=1), passed.argmax(axis=1)
    good = right[np.arange(trials), first] & any_pass
    found = policy_outcome(rate, verifier, 3)
    assert found.right == pytest.approx(good.mean(), abs=0.01)
    assert found.given_up == pytest.approx(1 - any_pass.mean(), abs=0.01)
    assert found.right + found.wrong + found.given_up == pytest.approx(1)
    assert accuracy_limit(rate, verifier) == pytest.approx(good.sum() / any_pass.sum(), abs=0.01)
    many = policy_outcome(rate, verifier, 500)
    assert many.right == pytest.approx(accuracy_limit(rate, verifier))


def test_problems_that_never_pass_are_left_out_of_the_ceiling() -> None:
    exact = VerifierRates(1.0, 0.0)
    assert math.isnan(accuracy_limit(0.0, exact))
    assert accuracy_ceiling([ProblemClass(0.5, 0.1), ProblemClass(0.5, 0.0)], exact) == 1.0
    assert policy_outcome(0.0, exact, 10).given_up == 1.0
    with pytest.raises(OptionError):
        accuracy_ceiling([ProblemClass(1.0, 0.0)], exact)


def test_impossible_rates_and_counts_are_refused() -> None:
    for call in (
        lambda: VerifierRates(1.2, 0.1),
        lambda: ProblemClass(0.5, -0.1),
        lambda: accuracy_ceiling([ProblemClass(0.5, 0.5)], HUMAN_EVAL),
        lambda: attempt_value(1, LLAMA_8B, HUMAN_EVAL, -1),
        lambda: attempt_value(0, LLAMA_8B, HUMAN_EVAL, 1),
        lambda: policy_outcome(0.5, HUMAN_EVAL, -1),
        lambda: optimal_attempts(LLAMA_8B, VerifierRates(0.1, 0.2), 1),
    ):
        with pytest.raises(OptionError):
            call()
