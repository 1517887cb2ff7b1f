"""The certified threshold: bounds by hand, the walk, and what is promised of it by simulation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes.risk_control import Certificate, CertificateError, most_harms, needed
from tersely.probes.stats import upper_bound
from tersely.probes.risk_control import Outcomes, certify, curve, grid, oracle, resample, stop_at


def split(offsets: Any, score: Any, harm: Any, saved: Any, full: Any) -> Outcomes:
    """Outcomes of anything that holds numbers."""
    return Outcomes(offsets, score, harm, saved, full)


def one_boundary(scores: Any, harms: Any) -> Outcomes:
    """Questions with a single boundary, where stopping saves 60 of 100 tokens."""
    n = len(scores)
    return split(np.arange(n + 1), scores, harms, np.full(n, 60), np.full(n, 100))


def traffic(n: int, seed: int, clear: float = 4.0) -> Outcomes:
    """Questions of 2 to 40 boundaries whose answer settles somewhere; scores tell so by `clear` deviations."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 41, n)
    offsets = np.append(0, np.cumsum(sizes))
    owner = np.repeat(np.arange(n), sizes)
    place = np.arange(offsets[-1]) - offsets[owner]
    ready = place / sizes[owner] >= rng.beta(1.3, 1.5, n)[owner]
    logits = clear * (ready - 0.5) + rng.normal(size=n)[owner] + rng.normal(size=len(owner))
    harm = (rng.random(n) < 0.8)[owner] & ~ready
    return split(offsets, 1 / (1 + np.exp(-logits)), harm, 50.0 * (sizes[owner] - place - 1) - 15, 50.0 * sizes)


def test_bounds_are_exact() -> None:
    assert upper_bound(0, 10, 0.1) == pytest.approx(1 - 0.1**0.1)
    assert upper_bound(10, 10, 0.1) == 1
    assert upper_bound(1, 2, 0.25) == pytest.approx(math.sqrt(0.75))  # 1 - p^2 = 0.25
    for harms, n, delta in ((1, 20, 0.1), (9, 1000, 0.1), (40, 300, 0.01)):
        p = upper_bound(harms, n, delta)
        chance = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(harms + 1))
        assert chance == pytest.approx(delta)


def test_needed_questions() -> None:
    assert needed(0.02, 0.1) == 114
    assert needed(0.5, 0.25) == 2  # exactly: half of a half
    assert needed(0.9, 0.5) == 1
    for alpha, delta in ((0.02, 0.1), (0.001, 0.05), (0.3, 0.01)):
        n = needed(alpha, delta)
        assert upper_bound(0, n, delta) <= alpha < upper_bound(0, n - 1, delta)
        assert most_harms(n, alpha, delta) == 0
        assert most_harms(n - 1, alpha, delta) == -1
    assert upper_bound(13, 1000, 0.1) <= 0.02 < upper_bound(14, 1000, 0.1)
    assert most_harms(1000, 0.02, 0.1) == 13
    assert most_harms(1000, 0.02, 0.9) > 20  # little confidence asked: more than the expected harms


def test_stops_at_the_first_boundary_that_reaches_the_threshold() -> None:
    score, harm = [0.2, 0.7, 0.6, 0.7, 0.9], [True, False, True, True, False]
    outcomes = split([0, 3, 3, 5], score, harm, saved=[30, 20, 10, 10, -5], full=[40, 10, 50])
    assert stop_at(outcomes, 0.95).tolist() == [-1, -1, -1]
    assert stop_at(outcomes, 0.8).tolist() == [-1, -1, 4]
    assert stop_at(outcomes, 0.7).tolist() == [1, -1, 3]
    assert stop_at(outcomes, 0.0).tolist() == [0, -1, 3]
    harms, saved = curve(outcomes, [0.95, 0.8, 0.7, 0.0])
    assert harms == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert saved == pytest.approx([0, -0.05, 0.3, 0.4])


def test_the_curve_is_what_stopping_at_each_threshold_gives() -> None:
    outcomes = traffic(200, seed=1)
    rounded = split(outcomes.offsets, outcomes.score.round(2), outcomes.harm, outcomes.saved, outcomes.full)
    for given in (outcomes, rounded):
        thresholds = np.append(np.linspace(0, 1, 53), given.score[:20])
        harm, saved = curve(given, thresholds)
        for t, h, s in zip(thresholds, harm, saved, strict=True):
            rows = stop_at(given, t)
            rows = rows[rows >= 0]
            assert h == pytest.approx(given.harm[rows].sum() / given.n)
            assert s == pytest.approx(given.saved[rows].sum() / given.full.sum())


def test_the_walk_ends_before_the_first_failure() -> None:
    scores = np.repeat([0.9, 0.7, 0.5, 0.3], 250)
    harms = np.zeros(1000, bool)
    harms[250:263] = True  # 13 more harms at 0.7, which is just allowed
    harms[500] = True
    found = certify(one_boundary(scores, harms), 0.02, 0.1, [0.95, 0.8, 0.6, 0.4, 0.2])
    assert found == Certificate(0.02, 0.1, 1000, 13, upper_bound(13, 1000, 0.1), 0.6, 0.3, 4, 114)
    harms[500] = False
    last = certify(one_boundary(scores, harms), 0.02, 0.1, [0.95, 0.8, 0.6, 0.4, 0.2])
    assert (last.threshold, last.tested, last.saved) == (0.2, 5, 0.6)


def test_nothing_behind_a_failure_counts_though_it_would_pass() -> None:
    n = 1000
    score, harm = np.tile([0.5, 0.9], n), np.zeros(2 * n, bool)
    harm[1:100:2] = True  # 50 questions are wrong only at their second boundary, which a strict threshold waits for
    outcomes = Outcomes(np.arange(n + 1) * 2, score, harm, np.tile([60.0, 30.0], n), np.full(n, 100.0))
    assert curve(outcomes, [0.8, 0.4])[0] == pytest.approx([0.05, 0.0])
    never = certify(outcomes, 0.02, 0.1, [0.95, 0.8, 0.4])
    assert (never.threshold, never.tested, never.saved) == (0.95, 2, 0)
    assert certify(outcomes, 0.02, 0.1, [0.8, 0.4]).threshold is None
    assert certify(outcomes, 0.02, 0.1, [0.4, 0.1]).threshold == 0.1


def test_too_few_questions_never_stop_and_say_how_many_are_missing() -> None:
    found = certify(one_boundary(np.ones(80), np.zeros(80, bool)), 0.02, 0.1, [1.0, 0.5])
    assert (found.threshold, found.saved, found.shortfall, found.tested) == (None, 0.0, 34, 1)
    assert str(found).startswith("never stops: 80 questions are too few to show with 90 % confidence that at most 2 %")
    assert str(found).endswith("34 more are needed")
    enough = certify(one_boundary(np.ones(114), np.zeros(114, bool)), 0.02, 0.1, [1.0, 0.5])
    assert (enough.threshold, enough.shortfall) == (0.5, 0)


def test_a_certificate_says_what_it_means() -> None:
    scores, harms = np.linspace(1, 0, 1000), np.arange(1000) % 100 == 50
    found = certify(one_boundary(scores, harms), 0.02, 0.1, [0.5])
    assert str(found) == (
        "stops at score >= 0.5, which saved 30 % of tokens and harmed 5 of 1,000 questions; with 90 % confidence at "
        "most 2 % are harmed, as asked (this threshold by itself: 0.925 %)"
    )
    harmful = certify(one_boundary(np.ones(1000), np.arange(1000) < 40), 0.02, 0.1, [1.0])
    assert str(harmful).startswith(
        "never stops: the strictest threshold harmed 40 of 1,000 questions, so that up to 4."
    )


def test_certificates_survive_json_and_nothing_else_does() -> None:
    found = certify(traffic(1000, 3), 0.02, 0.1, grid(traffic(300, 4).score))
    assert found.threshold is not None
    assert Certificate.from_json(found.as_json()) == found
    never = certify(traffic(50, 3), 0.02, 0.1, [1.0])
    assert Certificate.from_json(never.as_json()) == never
    good = json.loads(found.as_json())
    for change in (
        {"harms": 0}, {"n": 10_000}, {"bound": 0.001}, {"alpha": 0.001}, {"alpha": 1.5}, {"delta": 0.5}, {"needed": 3},
        {"threshold": None}, {"threshold": 1.2}, {"threshold": math.nan}, {"saved": 2.0}, {"saved": math.nan},
        {"tested": 0}, {"n": -1}, {"n": 1000.0}, {"alpha": True}, {"bound": "0.01"}, {"delta": None}, {"more": 1},
    ):  # fmt: skip
        with pytest.raises(CertificateError):
            Certificate.from_json(json.dumps(good | change))
    for text in ("", "[]", "{}", json.dumps({k: v for k, v in good.items() if k != "n"})):
        with pytest.raises(CertificateError):
            Certificate.from_json(text)
    with pytest.raises(CertificateError, match=r"saved is 0\.1"):
        replace(never, saved=0.1)


def test_grids_fall_strictly_and_reach_from_the_strictest_score_to_the_most_lenient() -> None:
    scores = traffic(100, 5).score
    found = grid(scores, 50)
    assert len(found) == 50
    assert (np.diff(found) < 0).all()
    assert (found[0], found[-1]) == (scores.max(), scores.min())
    assert grid([0.5, 0.5, 1.0]).tolist()[0] == 1.0
    assert grid([0.5, 0.5]).tolist() == [0.5]


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_harm_exceeds_alpha_in_no_more_than_delta_of_calibrations(alpha: float) -> None:
    pool, delta, draws = traffic(8000, 6), 0.1, 400
    found = resample(pool, pool, alpha, delta, grid(traffic(500, 7).score), draws, n=1000, seed=8)
    noise = math.sqrt(delta * (1 - delta) / draws)
    assert found.exceeded <= delta + 2 * noise
    assert found.exceeded > 0.01  # near the edge, so the test is not idle
    assert found.oracle_harm <= alpha
    assert found.efficiency >= 0.9


def test_little_confidence_is_broken_often_but_not_more_often_than_said() -> None:
    pool = traffic(8000, 6)
    found = resample(pool, pool, 0.02, 0.6, grid(traffic(500, 7).score), 400, n=1000, seed=8)
    assert 0.4 < found.exceeded <= 0.6 + 2 * math.sqrt(0.6 * 0.4 / 400)


def test_resampling_tells_of_each_draw_and_of_the_oracle() -> None:
    pool, other = traffic(2000, 9), traffic(3000, 10)
    thresholds = grid(traffic(300, 11).score)
    found = resample(pool, other, 0.05, 0.1, thresholds, draws=20, n=500, seed=1)
    again = resample(pool, other, 0.05, 0.1, thresholds, draws=20, n=500, seed=1)
    assert np.array_equal(found.threshold, again.threshold)
    harm, saved = curve(other, found.threshold)
    assert (found.harm, found.saved) == (pytest.approx(harm), pytest.approx(saved))
    best, harm_there, saved_there = oracle(other, 0.05)
    assert best is not None
    assert (harm_there, saved_there) == tuple(column[0] for column in curve(other, [best]))
    below = np.nextafter(np.unique(other.score)[np.unique(other.score) < best][-1], 1)
    assert curve(other, [below])[0][0] == harm_there <= 0.05 < curve(other, [np.nextafter(below, 0)])[0][0]
    few = resample(pool, other, 0.05, 0.1, thresholds, draws=3, n=20)
    assert np.isnan(few.threshold).all()
    assert (few.efficiency, few.exceeded) == (0, 0)


def test_an_oracle_that_may_never_stop() -> None:
    assert oracle(one_boundary([0.9, 0.9], [True, False]), 0.1) == (None, 0.0, 0.0)
    none = split([0, 0], [], [], [], [9])
    assert oracle(none, 0.1) == (None, 0.0, 0.0)
    assert certify(none, 0.5, 0.5, [0.5]).saved == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"score": [0.5, math.nan, 0.1]}, "score is not one column of finite numbers"),
        ({"score": [0.5, math.inf, 0.1]}, "score is not one column of finite numbers"),
        ({"score": [0.5, 1.5, 0.1]}, "scores go from 0.1 to 1.5; accepted: 0 to 1"),
        ({"score": [0.5, 0.5]}, "offsets are not accepted"),
        ({"score": [[0.5, 0.5, 0.5]]}, "score is not one column"),
        ({"score": ["a", "b", "c"]}, "score is not one column"),
        ({"saved": [1, math.nan, 1]}, "saved is not"),
        ({"saved": [1, 1, 51]}, "saves more than its full run"),
        ({"saved": [1, 1]}, "3 scores, 3 harms and 2 savings"),
        ({"harm": [0, 0.5, 1]}, "harm holds values that are no bool"),
        ({"offsets": [0, 3, 2]}, "rise from 0 to the number of boundaries, 3"),
        ({"offsets": [1, 2, 3]}, "rise from 0"),
        ({"offsets": [0, 1.5, 3]}, "offsets holds values that are no int64"),
        ({"offsets": [0]}, "no question"),
        ({"offsets": []}, "no question"),
        ({"full": [40]}, "full has 1 entries for 2 questions"),
        ({"full": [0, 50]}, "tokens above 0"),
    ],
)
def test_splits_that_are_refused(change: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {
        "offsets": [0, 1, 3], "score": [0.5, 0.5, 0.1], "harm": [0, 0, 1], "saved": [1, 1, 1], "full": [40, 50],
    }  # fmt: skip
    assert split(**good).n == 2
    with pytest.raises(OptionError, match=says):
        split(**good | change)


def test_options_that_are_refused() -> None:
    one = one_boundary([0.5], [False])
    for bad in (0, 1, -0.1, 1.1, math.nan):
        with pytest.raises(OptionError, match="alpha is"):
            certify(one, bad, 0.1, [0.5])
        with pytest.raises(OptionError, match="delta is"):
            certify(one, 0.1, bad, [0.5])
        with pytest.raises(OptionError, match="accepted: a share above 0"):
            needed(0.1, bad)
    for thresholds in ([], [0.5, 0.5], [0.4, 0.5], [1.1, 0.5], [math.nan], [[0.5]]):
        with pytest.raises(OptionError, match="thresholds are not accepted"):
            certify(one, 0.1, 0.1, thresholds)  # type: ignore[arg-type]
    for scores, count in (([], 5), ([0.5], 1), ([1.5], 5), ([math.nan], 5)):
        with pytest.raises(OptionError):
            grid(scores, count)
    for harms, n in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(OptionError, match="were harmed; accepted"):
            upper_bound(harms, n, 0.1)
    with pytest.raises(OptionError, match="draws is 0"):
        resample(one, one, 0.1, 0.1, [0.5], draws=0)
