"""Cost-of-pass, its frontier and scores, against the worked examples of their papers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersely.errors import OptionError, TerselyError
from tersely.evaluation.economics.costs import (
    EXPERT_USD,
    HUMAN,
    EconomicsError,
    SearchScore,
    cost_of_pass,
    costs_of_pass,
    duplicate_rate,
    e3,
    essentialness,
    frontier,
    gain,
    set_cost_of_pass,
)
from tersely.evaluation.stats import Interval

# --- cost-of-pass


def test_cost_of_pass_is_mean_cost_over_mean_success() -> None:
    assert cost_of_pass([1.0, 3.0], [1, 0]) == 4.0, "2 a run, every second run right"
    assert cost_of_pass([0.0, 4.0, 2.0, 2.0], [0, 1, 1, 1]) == pytest.approx(2 / 0.75)
    assert cost_of_pass([1.0, 1.0], [0, 0]) == math.inf
    assert cost_of_pass([0.0], [0]) == math.inf


def test_smoothing_turns_no_success_into_a_bound_that_tightens() -> None:
    assert cost_of_pass([1.0] * 8, [0] * 8, prior=0.5) == pytest.approx(9 / 0.5)
    assert cost_of_pass([1.0] * 80, [0] * 80, prior=0.5) > cost_of_pass([1.0] * 8, [0] * 8, prior=0.5)
    assert cost_of_pass([1.0] * 8, [1] * 8, prior=0.5) == pytest.approx(9 / 8.5)


def test_cost_of_pass_of_each_problem() -> None:
    costs, passes = [[1.0, 3.0], [1.0, 1.0]], [[1, 0], [0, 0]]
    assert costs_of_pass(costs, passes).tolist() == [4.0, math.inf]
    assert costs_of_pass([2.0, 3.0], [1, 0]).tolist() == [2.0, math.inf]
    assert cost_of_pass(costs, passes) == 6.0, "of the set: 1.5 a run, a quarter right"


MODELS = {"small": [1.0, 6.0, math.inf, math.inf], "large": [4.0, 4.0, 8.0, math.inf]}


def test_frontier_takes_the_cheapest_on_each_problem() -> None:
    found = frontier(MODELS, human=EXPERT_USD["AIME"])
    assert found.values.tolist() == [1.0, 4.0, 8.0, 20.0]
    assert found.best == ("small", "large", "large", HUMAN)
    assert found.mean == 33 / 4
    assert found.by_set(["easy", "easy", "hard", "hard"]) == {"easy": 2.5, "hard": 14.0}
    assert found.interval().low < found.mean < found.interval().high


def test_a_frontier_without_the_human_may_be_infinite() -> None:
    found = frontier(MODELS)
    assert found.mean == math.inf
    assert found.best[-1] is None
    with pytest.raises(EconomicsError) as caught:
        found.interval()
    assert caught.value.code == "infinite_cost"


def test_the_human_alone_is_a_frontier() -> None:
    assert frontier({}, human=58.0).mean == 58.0
    assert gain({"large": [8.0, 100.0]}, "large", human=58.0).estimate == (50 + 0) / 2


def test_gain_is_the_fall_of_the_frontier() -> None:
    assert gain(MODELS, "small", human=20.0).estimate == pytest.approx((4 + 4 + 8 + 20) / 4 - 33 / 4)
    assert gain(MODELS, "large", human=20.0).estimate == pytest.approx((1 + 6 + 20 + 20) / 4 - 33 / 4)
    assert gain(MODELS, ["small", "large"], human=20.0).estimate == pytest.approx(20 - 33 / 4)
    assert essentialness(MODELS, "large", human=20.0).estimate == pytest.approx(1 - 33 / 47)
    found = gain(MODELS, "small", human=20.0)
    assert found.low <= found.estimate <= found.high


def test_voting_that_changes_no_success_gains_nothing() -> None:
    right = [[1, 0, 1, 0], [1, 1, 1, 1]]
    once = costs_of_pass(np.full((2, 4), 1.0), right)
    thrice = costs_of_pass(np.full((2, 4), 3.0), right)
    assert gain({"once": once, "vote of 3": thrice}, "vote of 3", human=20.0) == Interval(0, 0, 0)


def test_invalid_costs_and_models() -> None:
    for call, code in (
        (lambda: cost_of_pass([1.0, 2.0], [1]), "shape_mismatch"),
        (lambda: cost_of_pass([], []), "empty_costs"),
        (lambda: costs_of_pass([[1.0]], [1]), "shape_mismatch"),
        (lambda: frontier({"a": [1.0], "b": [1.0, 2.0]}), "shape_mismatch"),
        (lambda: frontier({}), "no_models"),
        (lambda: frontier(MODELS).by_set(["one"]), "shape_mismatch"),
        (lambda: gain(MODELS, "smal"), "unknown_name"),
        (lambda: gain(MODELS, "small"), "infinite_cost"),
    ):
        with pytest.raises(TerselyError) as caught:
            call()
        assert caught.value.code == code


def test_the_interval_of_a_set_covers_and_may_be_open() -> None:
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        right = rng.random(120) < 0.4
        costs = np.where(right, 1.0, 3.0) + rng.normal(0, 0.1, 120)
        found = set_cost_of_pass(costs, right, resamples=400, seed=seed)
        hits += found.low <= (0.4 * 1 + 0.6 * 3) / 0.4 <= found.high
    assert 0.9 <= hits / 200 <= 0.99
    open_end = set_cost_of_pass([1.0] * 8, [1, 0, 0, 0, 0, 0, 0, 0])
    assert (open_end.estimate, open_end.high) == (8.0, math.inf)
    assert 1.0 < open_end.low < 8.0


# --- E3, ISR and ISE


def test_e3_takes_percent_and_reproduces_the_reported_gains() -> None:
    assert e3(0.9481, 2381) == pytest.approx(94.81**2 / 2381)
    assert e3(0.4, 10_000) == pytest.approx(0.16)
    # TravelPlanner, 0.16 before: the two versions of the paper report +187.5 % and +193.8 %.
    for score, reported in ((0.46, 1.875), (0.47, 1.938)):
        accuracy = math.sqrt(score * 10_000) / 100
        assert e3(accuracy, 10_000) / e3(0.4, 10_000) - 1 == pytest.approx(reported, abs=6e-4)
    assert e3(0.5, 100) == 2 * e3(0.5, 200) == 4 * e3(0.25, 100)
    assert (e3(0.0, 0), e3(1.0, 0)) == (0.0, math.inf)


@pytest.mark.parametrize(("accuracy", "tokens"), [(94.8, 100), (-0.1, 100), (0.5, -1), (math.nan, 1), (0.5, math.nan)])
def test_e3_rejects_bad_values(accuracy: float, tokens: float) -> None:
    with pytest.raises(OptionError):
        e3(accuracy, tokens)


def test_isr_and_ise_count_required_entities_only() -> None:
    found = SearchScore(frozenset("abcd"), frozenset("abxyz"), steps=10)
    assert (found.isr, found.ise) == (0.5, 0.2)
    whole = SearchScore(frozenset("abcd"), frozenset("abcd"), steps=100)
    assert (whole.isr, whole.ise) == (1.0, 0.04), "four steps in a hundred find something"


def test_a_search_needs_entities_and_steps() -> None:
    with pytest.raises(OptionError):
        SearchScore(frozenset(), frozenset("a"), steps=1)
    with pytest.raises(OptionError):
        SearchScore(frozenset("a"), frozenset("a"), steps=0)


def test_duplicate_actions() -> None:
    assert duplicate_rate(["a", "b", "a", "a"]) == 0.5
    assert duplicate_rate([]) == 0.0
