"""The certified threshold: the sequence of tests by hand, and its guarantee by simulation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes.risk_control import (
    Certificate,
    CertificateError,
    Outcomes,
    certify,
    first_stops,
    harm_upper_bound,
    max_harms,
    needed_questions,
    oracle_threshold,
    resample_calibrations,
    risk_curve,
    threshold_grid,
)

from ...support.refusals import refused


def split(offsets: Any, score: Any, harm: Any, saved: Any, full: Any) -> Outcomes:
    """Outcomes of anything that holds numbers."""
    return Outcomes(offsets, score, harm, saved, full)


def one_boundary(scores: Any, harms: Any) -> Outcomes:
    """Questions with a single boundary, where stopping saves 60 of 100 tokens."""
    n = len(scores)
    return split(np.arange(n + 1), scores, harms, np.full(n, 60), np.full(n, 100))


def traffic(n: int, seed: int, clear: float = 4.0) -> Outcomes:
    """Questions of 2 to 40 boundaries whose answer settles at some point; scores separate it by `clear` deviations."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 41, n)
    offsets = np.append(0, np.cumsum(sizes))
    owner = np.repeat(np.arange(n), sizes)
    place = np.arange(offsets[-1]) - offsets[owner]
    ready = place / sizes[owner] >= rng.beta(1.3, 1.5, n)[owner]
    logits = clear * (ready - 0.5) + rng.normal(size=n)[owner] + rng.normal(size=len(owner))
    harm = (rng.random(n) < 0.8)[owner] & ~ready
    return split(offsets, 1 / (1 + np.exp(-logits)), harm, 50.0 * (sizes[owner] - place - 1) - 15, 50.0 * sizes)


def test_needed_questions() -> None:
    assert needed_questions(0.02, 0.1) == 114
    assert needed_questions(0.5, 0.25) == 2  # exactly: half of a half
    assert needed_questions(0.9, 0.5) == 1
    for alpha, delta in ((0.02, 0.1), (0.001, 0.05), (0.3, 0.01)):
        n = needed_questions(alpha, delta)
        assert harm_upper_bound(0, n, delta) <= alpha < harm_upper_bound(0, n - 1, delta)
        assert max_harms(n, alpha, delta) == 0
        assert max_harms(n - 1, alpha, delta) == -1
    assert harm_upper_bound(13, 1000, 0.1) <= 0.02 < harm_upper_bound(14, 1000, 0.1)
    assert max_harms(1000, 0.02, 0.1) == 13
    assert max_harms(1000, 0.02, 0.9) > 20  # with little confidence: more than the expected harms


def test_first_stops_are_the_first_boundaries_that_reach_the_threshold() -> None:
    score, harm = [0.2, 0.7, 0.6, 0.7, 0.9], [True, False, True, True, False]
    outcomes = split([0, 3, 3, 5], score, harm, saved=[30, 20, 10, 10, -5], full=[40, 10, 50])
    assert first_stops(outcomes, 0.95).tolist() == [-1, -1, -1]
    assert first_stops(outcomes, 0.8).tolist() == [-1, -1, 4]
    assert first_stops(outcomes, 0.7).tolist() == [1, -1, 3]
    assert first_stops(outcomes, 0.0).tolist() == [0, -1, 3]
    harms, saved = risk_curve(outcomes, [0.95, 0.8, 0.7, 0.0])
    assert harms == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert saved == pytest.approx([0, -0.05, 0.3, 0.4])


def test_the_risk_curve_equals_stopping_at_each_threshold() -> None:
    outcomes = traffic(200, seed=1)
    rounded = split(outcomes.offsets, outcomes.score.round(2), outcomes.harm, outcomes.saved, outcomes.full)
    for given in (outcomes, rounded):
        thresholds = np.append(np.linspace(0, 1, 53), given.score[:20])
        harm, saved = risk_curve(given, thresholds)
        for t, h, s in zip(thresholds, harm, saved, strict=True):
            rows = first_stops(given, t)
            rows = rows[rows >= 0]
            assert h == pytest.approx(given.harm[rows].sum() / given.n)
            assert s == pytest.approx(given.saved[rows].sum() / given.full.sum())


def test_certify_ends_before_the_first_failure() -> None:
    scores = np.repeat([0.9, 0.7, 0.5, 0.3], 250)
    harms = np.zeros(1000, bool)
    harms[250:263] = True  # 13 more harms at 0.7, which is just allowed
    harms[500] = True
    found = certify(one_boundary(scores, harms), 0.02, 0.1, [0.95, 0.8, 0.6, 0.4, 0.2])
    assert found == Certificate(0.02, 0.1, 1000, 13, harm_upper_bound(13, 1000, 0.1), 0.6, 0.3, 4, 114)
    harms[500] = False
    last = certify(one_boundary(scores, harms), 0.02, 0.1, [0.95, 0.8, 0.6, 0.4, 0.2])
    assert (last.threshold, last.tested, last.saved) == (0.2, 5, 0.6)


def test_thresholds_after_a_failure_are_ignored() -> None:
    n = 1000
    score, harm = np.tile([0.5, 0.9], n), np.zeros(2 * n, bool)
    harm[1:100:2] = True  # 50 questions are wrong only at their second boundary, where a strict threshold stops
    outcomes = Outcomes(np.arange(n + 1) * 2, score, harm, np.tile([60.0, 30.0], n), np.full(n, 100.0))
    assert risk_curve(outcomes, [0.8, 0.4])[0] == pytest.approx([0.05, 0.0])
    never = certify(outcomes, 0.02, 0.1, [0.95, 0.8, 0.4])
    assert (never.threshold, never.tested, never.saved) == (0.95, 2, 0)
    assert certify(outcomes, 0.02, 0.1, [0.8, 0.4]).threshold is None
    assert certify(outcomes, 0.02, 0.1, [0.4, 0.1]).threshold == 0.1


def test_with_too_few_questions_nothing_is_certified() -> None:
    found = certify(one_boundary(np.ones(80), np.zeros(80, bool)), 0.02, 0.1, [1.0, 0.5])
    assert (found.threshold, found.saved, found.shortfall, found.tested) == (None, 0.0, 34, 1)
    assert "34 more" in str(found)
    enough = certify(one_boundary(np.ones(114), np.zeros(114, bool)), 0.02, 0.1, [1.0, 0.5])
    assert (enough.threshold, enough.shortfall) == (0.5, 0)


def test_the_text_of_a_certificate_has_its_figures() -> None:
    scores, harms = np.linspace(1, 0, 1000), np.arange(1000) % 100 == 50
    found = certify(one_boundary(scores, harms), 0.02, 0.1, [0.5])
    for figure in ("0.5", "30 %", "5 of 1,000", "90 %", "2 %", "0.925 %"):
        assert figure in str(found)
    harmful = certify(one_boundary(np.ones(1000), np.arange(1000) < 40), 0.02, 0.1, [1.0])
    assert "never stops" in str(harmful)
    assert "40 of 1,000" in str(harmful)


def test_a_certificate_survives_json_and_contradictions_are_refused() -> None:
    found = certify(traffic(1000, 3), 0.02, 0.1, threshold_grid(traffic(300, 4).score))
    assert found.threshold is not None
    assert Certificate.from_dict(json.loads(json.dumps(asdict(found)))) == found
    never = certify(traffic(50, 3), 0.02, 0.1, [1.0])
    assert Certificate.from_dict(json.loads(json.dumps(asdict(never)))) == never
    good = asdict(found)
    for change in (
        {"harms": 0}, {"n": 10_000}, {"bound": 0.001}, {"alpha": 0.001}, {"alpha": 1.5}, {"delta": 0.5}, {"needed": 3},
        {"threshold": None}, {"threshold": 1.2}, {"threshold": math.nan}, {"saved": 2.0}, {"saved": math.nan},
        {"tested": 0}, {"n": -1}, {"alpha": True}, {"bound": "0.01"}, {"delta": None}, {"more": 1},
    ):  # fmt: skip
        with pytest.raises(CertificateError):
            Certificate.from_dict(good | change)
    invalid: list[Any] = ["", [], {}, {k: v for k, v in good.items() if k != "n"}]
    for values in invalid:
        with pytest.raises(CertificateError):
            Certificate.from_dict(values)
    with refused(CertificateError):
        replace(never, saved=0.1)


def test_a_grid_falls_strictly_from_the_highest_to_the_lowest_score() -> None:
    scores = traffic(100, 5).score
    found = threshold_grid(scores, 50)
    assert len(found) == 50
    assert (np.diff(found) < 0).all()
    assert (found[0], found[-1]) == (scores.max(), scores.min())
    assert threshold_grid([0.5, 0.5, 1.0]).tolist()[0] == 1.0
    assert threshold_grid([0.5, 0.5]).tolist() == [0.5]


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_harm_exceeds_alpha_in_no_more_than_delta_of_calibrations(alpha: float) -> None:
    pool, delta, draws = traffic(8000, 6), 0.1, 400
    found = resample_calibrations(pool, alpha, delta, threshold_grid(traffic(500, 7).score), draws, n=1000, seed=8)
    exceeded, efficiency = found
    noise = math.sqrt(delta * (1 - delta) / draws)
    assert exceeded <= delta + 2 * noise
    assert exceeded > 0.01  # near the edge, so the test is not idle
    assert efficiency >= 0.9


def test_harm_may_exceed_alpha_as_often_as_delta_allows() -> None:
    pool = traffic(8000, 6)
    exceeded, _ = resample_calibrations(pool, 0.02, 0.6, threshold_grid(traffic(500, 7).score), 400, n=1000, seed=8)
    assert 0.4 < exceeded <= 0.6 + 2 * math.sqrt(0.6 * 0.4 / 400)


def test_calibrations_on_few_questions_never_stop() -> None:
    pool, thresholds = traffic(2000, 9), threshold_grid(traffic(300, 11).score)
    one, again = (resample_calibrations(pool, 0.05, 0.1, thresholds, draws=20, n=500, seed=1) for _ in range(2))
    assert one == again
    assert resample_calibrations(pool, 0.05, 0.1, thresholds, draws=3, n=20) == (0, 0)


def test_the_oracle_is_the_most_lenient_threshold_within_alpha() -> None:
    pool = traffic(3000, 10)
    best, harm_there, saved_there = oracle_threshold(pool, 0.05)
    assert best is not None
    assert (harm_there, saved_there) == tuple(column[0] for column in risk_curve(pool, [best]))
    below = np.nextafter(np.unique(pool.score)[np.unique(pool.score) < best][-1], 1)
    assert risk_curve(pool, [below])[0][0] == harm_there <= 0.05 < risk_curve(pool, [np.nextafter(below, 0)])[0][0]


def test_the_oracle_may_never_stop() -> None:
    assert oracle_threshold(one_boundary([0.9, 0.9], [True, False]), 0.1) == (None, 0.0, 0.0)
    none = split([0, 0], [], [], [], [9])
    assert oracle_threshold(none, 0.1) == (None, 0.0, 0.0)
    assert certify(none, 0.5, 0.5, [0.5]).saved == 0


@pytest.mark.parametrize(
    "change",
    [
        {"score": [0.5, math.nan, 0.1]},
        {"score": [0.5, math.inf, 0.1]},
        {"score": [0.5, 1.5, 0.1]},
        {"score": [0.5, 0.5]},
        {"saved": [1, math.nan, 1]},
        {"saved": [1, 1, 51]},
        {"saved": [1, 1]},
        {"offsets": [0, 3, 2]},
        {"offsets": [1, 2, 3]},
        {"offsets": [0]},
        {"offsets": []},
        {"full": [40]},
        {"full": [0, 50]},
    ],
)
def test_invalid_outcomes_are_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "offsets": [0, 1, 3], "score": [0.5, 0.5, 0.1], "harm": [0, 0, 1], "saved": [1, 1, 1], "full": [40, 50],
    }  # fmt: skip
    assert split(**good).n == 2
    with refused(OptionError):
        split(**good | change)


def test_invalid_options_are_refused() -> None:
    one = one_boundary([0.5], [False])
    for bad in (0, 1, -0.1, 1.1, math.nan):
        with refused(OptionError):
            certify(one, bad, 0.1, [0.5])
        with refused(OptionError):
            certify(one, 0.1, bad, [0.5])
        with refused(OptionError):
            needed_questions(0.1, bad)
    for thresholds in ([], [0.5, 0.5], [0.4, 0.5], [1.1, 0.5], [math.nan]):
        with refused(OptionError):
            certify(one, 0.1, 0.1, thresholds)
    for scores, count in (([], 5), ([0.5], 1), ([1.5], 5), ([math.nan], 5)):
        with pytest.raises(OptionError):
            threshold_grid(scores, count)
    for harms, n in ((0, 0), (-1, 5), (6, 5)):
        with refused(OptionError):
            harm_upper_bound(harms, n, 0.1)
