"""Resampling with an imperfect verifier, against the worked example of its paper and against sampling."""

from __future__ import annotations

import numpy as np
import pytest

from tersely.controller.sampling.resampling import (
    ProblemClass,
    VerifierRates,
    attempt_value,
    ceiling,
    estimate_rates,
    optimal_attempts,
)
from tersely.errors import OptionError

LLAMA_8B = [ProblemClass(0.58, 0.87), ProblemClass(0.42, 0.13)]
HUMAN_EVAL = VerifierRates(true_positive=1.0, false_positive=0.25)


def test_the_worked_example() -> None:
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


def test_impossible_rates_and_counts_are_refused() -> None:
    for call in (
        lambda: VerifierRates(1.2, 0.1),
        lambda: ProblemClass(0.5, -0.1),
        lambda: attempt_value(1, [ProblemClass(0.5, 0.5)], HUMAN_EVAL, 1),
        lambda: attempt_value(1, LLAMA_8B, HUMAN_EVAL, -1),
        lambda: attempt_value(0, LLAMA_8B, HUMAN_EVAL, 1),
        lambda: optimal_attempts(LLAMA_8B, VerifierRates(0.1, 0.2), 1),
    ):
        with pytest.raises(OptionError):
            call()


def test_the_ceiling_of_the_worked_example() -> None:
    assert [ceiling([kind], HUMAN_EVAL) for kind in LLAMA_8B] == pytest.approx([0.964, 0.374], abs=5e-4)
    assert ceiling(LLAMA_8B, HUMAN_EVAL) == pytest.approx(0.716, abs=5e-4)
    never = ProblemClass(0.5, 0.0)
    assert ceiling([ProblemClass(0.5, 0.5), never], VerifierRates(1.0, 0.0)) == 1.0, "only what can pass counts"
    assert ceiling([never], VerifierRates(1.0, 0.0)) == 0.0


def test_rates_are_estimated_from_enough_answers() -> None:
    right = [True] * 10 + [False] * 10
    passed = [True] * 9 + [False] + [True] * 2 + [False] * 8
    assert estimate_rates(passed, right) == VerifierRates(0.9, 0.2)
    with pytest.raises(OptionError) as caught:
        estimate_rates(passed[:13], right[:13])
    assert caught.value.code == "too_few_answers" and "7 more wrong ones" in str(caught.value)
