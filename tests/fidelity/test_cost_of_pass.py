"""Cost-of-pass: v = C / R, its frontier with a human expert, gains and essentialness, worked out by hand.

The fit of a half-life to frontiers over time is missing here.
"""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest

from tersely.errors import TerselyError
from tersely.evaluation.economics.costs import (
    HUMAN,
    Price,
    cost_of_pass,
    costs_of_pass,
    essentialness,
    frontier,
    gain,
)
from tersely.evaluation.stats import Interval


def test_a_generation_costs_its_tokens_at_their_prices() -> None:
    """120 tokens read at 0.15 USD and 2,000 written at 0.60 USD a million."""
    price = Price(prompt=0.15, output=0.60, as_of=dt.date(2025, 4, 1))
    assert price.cost(120, 2000) == pytest.approx(0.000018 + 0.0012)


def test_cost_of_pass_is_mean_cost_over_mean_success() -> None:
    assert cost_of_pass([1.0, 3.0], [1, 0]) == 4.0, "2 a run, every second run right"
    assert cost_of_pass([0.0, 4.0, 2.0, 2.0], [0, 1, 1, 1]) == pytest.approx(2 / 0.75), "not the mean of ratios"
    assert cost_of_pass([1.0, 1.0], [0, 0]) == math.inf
    assert cost_of_pass([0.0], [0]) == math.inf


def test_cost_of_pass_of_each_problem() -> None:
    costs, passes = [[1.0, 3.0], [1.0, 1.0]], [[1, 0], [0, 0]]
    assert costs_of_pass(costs, passes).tolist() == [4.0, math.inf]
    assert costs_of_pass([2.0, 3.0], [1, 0]).tolist() == [2.0, math.inf]


MODELS = {"small": [1.0, 6.0, math.inf, math.inf], "large": [4.0, 4.0, 8.0, math.inf]}


def test_frontier_takes_the_cheapest_on_each_problem() -> None:
    found = frontier(MODELS, human=20.0)
    assert found.values.tolist() == [1.0, 4.0, 8.0, 20.0]
    assert found.best == ("small", "large", "large", HUMAN)


def test_a_frontier_without_the_human_may_be_infinite() -> None:
    found = frontier(MODELS)
    assert found.values[-1] == math.inf
    assert found.best[-1] is None


def test_the_human_alone_is_a_frontier() -> None:
    assert frontier({}, human=58.0).values.tolist() == [58.0]
    assert gain({"large": [8.0, 100.0]}, "large", human=58.0).estimate == (50 + 0) / 2


def test_gain_is_the_fall_of_the_frontier() -> None:
    assert gain(MODELS, "small", human=20.0).estimate == pytest.approx((4 + 4 + 8 + 20) / 4 - 33 / 4)
    assert gain(MODELS, "large", human=20.0).estimate == pytest.approx((1 + 6 + 20 + 20) / 4 - 33 / 4)
    assert essentialness(MODELS, "large", human=20.0).estimate == pytest.approx(1 - 33 / 47)
    found = gain(MODELS, "small", human=20.0)
    assert found.low <= found.estimate <= found.high


def test_essentialness_leaves_one_model_out_at_a_time() -> None:
    """Two models that can replace each other are both inessential; the one without a substitute is not.

    With an expert at 20 USD, the frontier is 2 and 5, and without `third` 2 and 20. Of the pair without `first` it is 6
    and 5.
    """
    models = {"first": [2.0, 40.0], "second": [2.0, 50.0], "third": [6.0, 5.0]}
    found = {name: essentialness(models, name, human=20.0).estimate for name in models}
    assert found == pytest.approx({"first": 0.0, "second": 0.0, "third": 1 - (2 + 5) / (2 + 20)})
    assert gain(models, "third", human=20.0).estimate == pytest.approx((20 - 5) / 2)
    pair = {"third": models["third"], "first": models["first"]}
    assert essentialness(pair, "first", human=20.0).estimate == pytest.approx(1 - 7 / 11)


def test_voting_that_changes_no_success_gains_nothing() -> None:
    right = [[1, 0, 1, 0], [1, 1, 1, 1]]
    once = costs_of_pass(np.full((2, 4), 1.0), right)
    thrice = costs_of_pass(np.full((2, 4), 3.0), right)
    assert gain({"once": once, "vote of 3": thrice}, "vote of 3", human=20.0) == Interval(0, 0, 0)


def test_invalid_costs_and_models() -> None:
    for call, code in (
        (lambda: costs_of_pass([[1.0]], [1]), "shape_mismatch"),
        (lambda: frontier({"a": [1.0], "b": [1.0, 2.0]}), "shape_mismatch"),
        (lambda: frontier({}), "no_models"),
        (lambda: gain(MODELS, "smal"), "unknown_name"),
        (lambda: gain(MODELS, "small"), "infinite_cost"),
    ):
        with pytest.raises(TerselyError) as caught:
            call()
        assert caught.value.code == code
