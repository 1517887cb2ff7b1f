"""The drift alarm: rare while nothing changes, quick after a change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes.drift import DriftMonitor, Region, RegionError

from ...support.refusals import refused


def rows(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Features with a few wide directions, on scales far apart; shifted by so many deviations each."""
    rng = np.random.default_rng(seed)
    wide = np.random.default_rng(0).normal(size=(4, d))
    return (rng.normal(size=(n, 4)) @ wide + rng.normal(size=(n, d)) + shift) * np.geomspace(0.01, 100, d) + 7


def first_alarm(monitor: DriftMonitor, stream: np.ndarray) -> int | None:
    for features in stream:
        monitor.observe(features)
    return monitor.state.since


def identity(held_out: Any) -> Region:
    """A region of one feature whose distance is its square."""
    one = np.ones(1)
    return Region(np.zeros(1), one, np.ones((1, 1)), one, np.array(1.0), np.asarray(held_out, float))


def test_distances_are_mahalanobis_of_the_shrunk_covariance() -> None:
    from sklearn.covariance import LedoitWolf

    data = rows(400, 6, seed=1)
    region = Region.fit(data, seed=3)
    fitted = data[np.random.default_rng(3).permutation(400)][:200]
    scaled = (fitted - fitted.mean(axis=0)) / fitted.std(axis=0)
    reference = LedoitWolf(assume_centered=True).fit(scaled)
    new = rows(20, 6, seed=2, shift=1.0)
    ours = region.distances(new) * 6
    theirs = reference.mahalanobis((new - fitted.mean(axis=0)) / fitted.std(axis=0))
    assert reference.shrinkage_ > 1 / 200
    assert ours == pytest.approx(theirs)


def test_held_out_rows_take_no_part_in_the_fit() -> None:
    data = rows(60, 200, seed=4)  # more features than rows
    region = Region.fit(data, seed=5)
    fitted, held_out = np.array_split(data[np.random.default_rng(5).permutation(60)], 2)
    assert region.held_out == pytest.approx(np.sort(region.distances(held_out)))
    assert region.distances(fitted).max() < region.held_out.min()  # why rows of the fit must not be used
    fresh = region.distances(rows(300, 200, seed=6))
    assert np.median(fresh) == pytest.approx(np.median(region.held_out), rel=0.15)


def test_constant_features_and_few_axes() -> None:
    data = rows(40, 8, seed=7)
    data[:, 3] = 5.0
    region = Region.fit(data, rank=2)
    moved = data[:1].copy()
    moved[0, 3] = 9.0
    assert region.axes.shape == (2, 8)
    assert np.isfinite(region.held_out).all()
    assert region.distances(moved)[0] > region.distances(data[:1])[0] + 1
    assert np.isfinite(Region.fit(np.ones((40, 3))).held_out).all()


def test_p_values_count_farther_rows_and_rows_become_known() -> None:
    monitor = DriftMonitor(identity([1.0, 4.0, 9.0]))
    assert 1 / 4 < monitor.observe([2.5]).p_value <= 2 / 4  # 6.25: one of four is farther, and itself
    assert 0 < monitor.observe([10.0]).p_value <= 1 / 5
    assert 5 / 6 < monitor.observe([0.0]).p_value <= 1
    tied = [DriftMonitor(identity([4.0] * 9), seed=s).observe([2.0]).p_value for s in range(300)]
    assert (min(tied) < 0.05, max(tied) > 0.95) == (True, True)


def test_wealth_is_the_mean_over_bets_and_beginnings() -> None:
    monitor = DriftMonitor(identity([1.0, 4.0, 9.0]), seed=1)
    states = [monitor.observe([x]) for x in (3.5, 0.1, 5.0)]
    p = [state.p_value for state in states]
    wealth = 1 / 4  # kept for a drift that begins after the third row
    for start in range(3):
        for eps in (0.05, 0.2, 0.4, 0.6, 0.8):
            wealth += math.prod(eps * x ** (eps - 1) for x in p[start:]) / ((start + 1) * (start + 2)) / 5
    assert math.exp(states[-1].log_wealth) == pytest.approx(wealth)
    assert [state.seen for state in states] == [1, 2, 3]


def test_alarms_are_rare_while_nothing_changes() -> None:
    false_alarm, streams = 0.1, 200
    alarms = 0
    for stream in range(streams):  # few held-out rows: with a fixed set, their luck alone would raise alarms
        distances = np.random.default_rng(stream).chisquare(3, 20 + 200)
        monitor = DriftMonitor(identity(np.sort(distances[:20])), false_alarm, seed=stream)
        alarms += first_alarm(monitor, np.sqrt(distances[20:, None])) is not None
    assert alarms / streams <= false_alarm + 2 * math.sqrt(false_alarm * (1 - false_alarm) / streams)
    assert alarms > 0  # the bound is not trivial


@pytest.mark.parametrize(("d", "shift", "within"), [(16, 2.0, 15), (300, 0.7, 15)])
def test_a_shift_is_detected_quickly_also_after_a_calm_period(d: int, shift: float, within: int) -> None:
    region = Region.fit(rows(400, d, seed=8))
    at_once = first_alarm(DriftMonitor(region), rows(100, d, 9, shift))
    assert at_once is not None and at_once <= within
    monitor = DriftMonitor(region)
    assert first_alarm(monitor, rows(400, d, 10)) is None
    later = first_alarm(monitor, rows(100, d, 11, shift))
    assert later is not None and 400 < later <= 400 + 2 * within


def test_an_alarm_stays_on_until_the_reset() -> None:
    monitor = DriftMonitor(identity(np.linspace(0, 1, 200)), false_alarm=0.01)
    since = first_alarm(monitor, np.full((3000, 1), 40.0) + np.arange(3000)[:, None])
    assert since is not None and since < 10
    assert monitor.state.log_wealth > 709
    first_alarm(monitor, np.zeros((50, 1)))
    assert (monitor.state.since, monitor.state.seen) == (since, 3050)
    assert monitor.reset() == monitor.state
    assert (monitor.state.since, monitor.state.log_wealth, monitor.state.seen) == (None, 0.0, 0)
    assert monitor.observe([40.0]).p_value <= 1 / 201  # known rows are forgotten, held-out ones are not


def test_regions_survive_as_arrays_to_the_last_bit() -> None:
    from safetensors.numpy import load, save

    region = Region.fit(rows(50, 30, seed=12))
    again = Region(**load(save(region.arrays())))
    new = rows(40, 30, seed=13, shift=0.3)
    assert np.array_equal(region.distances(new), again.distances(new))
    one, other = DriftMonitor(region, seed=2), DriftMonitor(again, seed=2)
    assert [one.observe(x) for x in new] == [other.observe(x) for x in new]


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(2)}, {"mean": np.zeros((1, 1))}, {"scale": np.zeros(1)}, {"variances": np.array([-1.0])},
        {"residual": np.array(0.0)}, {"residual": np.ones(1)}, {"axes": np.ones((2, 1))}, {"held_out": np.zeros(0)},
        {"held_out": np.array([2.0, 1.0])}, {"held_out": np.array([1.0, math.nan])},
    ],
)  # fmt: skip
def test_invalid_arrays_of_a_region_are_refused(change: dict[str, np.ndarray]) -> None:
    good = identity([1.0]).arrays()
    with pytest.raises(RegionError):
        Region(**good | change)


def test_features_that_are_not_finite_are_refused_and_not_counted() -> None:
    region = Region.fit(rows(40, 4, seed=14))
    monitor = DriftMonitor(region)
    before = monitor.observe(rows(1, 4, 15)[0])
    one_row: list[Any] = [[0.0, math.nan, 0, 0], [math.inf, 0, 0, 0], [0.0, 0, 0], [[0.0] * 4], []]
    for features in one_row:
        with pytest.raises(RegionError):
            monitor.observe(features)
    assert monitor.state == before
    with_nan = rows(40, 4, seed=14)
    with_nan[3, 2] = math.nan
    for table in (with_nan, rows(19, 4, 1), np.zeros((40, 0)), np.zeros(40)):
        with pytest.raises(RegionError):
            Region.fit(table)
    for false_alarm in (0, 1, math.nan):
        with refused(OptionError):
            DriftMonitor(region, false_alarm)
