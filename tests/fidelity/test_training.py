"""Training methods with public code: the pairs that the authors' formulas give, worked out by hand."""

from __future__ import annotations

from random import Random

from tersely.training.methods.adar1 import AdaR1, make_pairs
from tersely.training.traces import SampledTrace


def sample(length: int, right: bool) -> SampledTrace:
    return SampledTrace([1], [2] * length, [1], right, True)


def test_adar1_constants() -> None:
    settings = AdaR1()
    assert (settings.share, settings.samples, settings.beta, settings.groups, settings.instances) == (
        0.8,
        12,
        0.1,
        4,
        2,
    )
    assert (settings.min_accuracy, settings.nll_weight) == (0.0, 0.0)


def test_adar1_prefers_the_shortest_right_completion_to_the_two_longest_right_ones() -> None:
    """The authors' script filters the preferred group to right completions first, so wrong ones are never losers."""
    long = [sample(90, True), sample(70, True), sample(50, True), sample(60, True), sample(200, False)]
    short = [sample(10, False)] * 5
    found = make_pairs(long, short, Random(0))
    instance = [(p.chosen.length, p.rejected.length) for p in found if p.level == "instance"]
    assert instance == [(50, 90), (50, 70)]
    group = [(p.chosen.right, p.rejected.right, p.rejected.length) for p in found if p.level == "group"]
    assert group == [(True, False, 10)] * 4
