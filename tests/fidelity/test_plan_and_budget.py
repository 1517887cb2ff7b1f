"""Plan-and-Budget: its schedules, levels and BBAM's shares, worked out by hand."""

from __future__ import annotations

import pytest

from tersely.controller.policies.research.plan import LEVELS, SCHEDULES, shares


def test_the_schedules_of_the_paper() -> None:
    found = {name: [round(decay(j, 4), 3) for j in range(4)] for name, decay in SCHEDULES.items()}
    assert found == {
        "constant": [1, 1, 1, 1],
        "linear": [4, 3, 2, 1],
        "polynomial": [16, 9, 4, 1],
        "exponential": [1, 0.9, 0.81, 0.729],
        "cosine": [1.1, 0.85, 0.35, 0.1],
    }
    assert SCHEDULES["cosine"](0, 1) == 1
    assert LEVELS == (200, 250, 350, 450, 600)


def test_shares_are_whole_and_lose_nothing() -> None:
    assert shares(100, [1, 1, 1], "constant") == [34, 33, 33]
    assert shares(100, [50, 50], "linear") == [67, 33]
    assert shares(250, [40, 60], "cosine") == [220, 30]
    assert shares(11, [2, 3, 3, 1], "constant") == [2, 4, 4, 1], "of 2.4, 3.7, 3.7 and 1.2 the largest get one each"
    assert shares(90, [5, 1, 3], "uniform") == [30, 30, 30]
    assert all(sum(shares(total, [3, 5, 2, 7], "exponential")) == total for total in range(60))


def test_bbam_gives_shares_by_the_root_of_uncertainty() -> None:
    """(c a)^(1 / (a + 1)): with a = 1 the square roots 3, 2 and 1 of 9, 4 and 1; with a = 2 cube roots of 2 c."""
    assert shares(60, [9, 4, 1], "bam") == [30, 20, 10]
    assert shares(70, [32, 4, 0.5], "bam", 2.0) == [40, 20, 10], "4, 2 and 1 of 7"


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_no_other_shares_leave_less_uncertainty(exponent: float) -> None:
    weights = [50.0, 30.0, 20.0]

    def left(budget: list[int]) -> float:
        return float(sum(c / b**exponent for c, b in zip(weights, budget, strict=True)))

    best = shares(300, weights, "bam", exponent)
    everything = [[a, b, 300 - a - b] for a in range(40, 200) for b in range(40, 259 - a)]
    assert left(best) == pytest.approx(min(map(left, everything)), rel=1e-4)
    assert left(shares(300, weights, "constant")) > left(best) * 1.001
