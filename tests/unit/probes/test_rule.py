"""The stop rule: free evidence and trials, live and on recorded data alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tersely.probes.calibrate.data import Boundaries, read_boundaries
from tersely.probes.rule import FEATURES, HOPEFUL, HOPELESS, READY, TRIAL_FEATURES, Evidence, RuleState, StopRule

from ...support.planted_records import constant, linear, planted

CLASSES = (HOPEFUL, HOPELESS, READY)
WIDTH = 8
FREE = len(FEATURES) + WIDTH
PAID = FREE + len(TRIAL_FEATURES)


@pytest.fixture(scope="module")
def boundaries() -> Boundaries:
    return read_boundaries(planted(60, seed=4), -1)


def some_rule(seed: int = 0, **settings: Any) -> StopRule:
    """A rule whose scores spread over the whole range."""
    rng = np.random.default_rng(seed)

    def evidence(inputs: int) -> Evidence:
        return Evidence(linear(rng.normal(0, 0.25, (inputs, 3)), np.zeros(3)), CLASSES)

    return StopRule(evidence(FREE), evidence(PAID), **settings)


def score_live(rule: StopRule, b: Boundaries) -> list[tuple[float, float, int, bool]]:
    """Score the boundaries one after the other, as a policy does: score, hopelessness, cost, whether there was a trial.

    Answers are texts here, as they are live.
    """
    made: list[tuple[float, float, int, bool]] = []
    walk, last = RuleState(rule), -1
    for place in range(len(b)):
        if b.rollout[place] != last:
            walk, last = RuleState(rule), int(b.rollout[place])
        score = walk.score_free(b.rows[place][: len(FEATURES)], b.rows[place][len(FEATURES) :])
        asked = bool(b.trial[place]) and walk.wants_trial(score, int(b.end[place]))
        if asked:
            stated = None if b.stated[place] < 0 else f"answer {b.stated[place]}"
            said = f"answer {b.trial_answer[place]}"
            score = walk.score_with_trial(said, float(b.confidence[place]), int(b.trial[place]), stated)
        made.append((score, walk.hopeless, walk.trial_tokens, asked))
    return made


@pytest.mark.parametrize(("low", "high", "overhead"), [(0.0, 1.0, 9.0), (0.3, 0.8, 0.1), (0.0, 1.0, 0.02)])
def test_live_and_recorded_scores_agree(boundaries: Boundaries, low: float, high: float, overhead: float) -> None:
    rule = some_rule(low=low, high=high, overhead=overhead)
    found = boundaries.score(rule)
    score, hopeless, paid, asked = (np.array(column) for column in zip(*score_live(rule, boundaries), strict=True))
    np.testing.assert_allclose(found.score, score, atol=1e-5)
    np.testing.assert_allclose(found.hopeless, hopeless, atol=1e-5)
    assert found.trial_tokens.tolist() == paid.tolist()
    assert found.tried.tolist() == asked.tolist()
    assert 0 < found.tried.sum() < len(boundaries) or (low, high, overhead) == (0.0, 1.0, 9.0)


def test_trials_are_asked_for_only_within_the_band(boundaries: Boundaries) -> None:
    free = some_rule().free.scores(boundaries.rows)[0]
    low, high = np.quantile(free, [0.3, 0.6])
    found = boundaries.score(some_rule(low=low, high=high, overhead=99.0))
    assert found.tried.tolist() == ((free >= low) & (free < high)).tolist()
    assert found.score[~found.tried].tolist() == free[~found.tried].tolist()
    assert (np.abs(found.score - free)[found.tried] > 1e-6).any()


def test_boundaries_without_a_recorded_trial_have_none(boundaries: Boundaries) -> None:
    b, rule = boundaries, some_rule(low=0.0, high=1.0, overhead=99.0)
    found = replace(b, trial=np.zeros_like(b.trial)).score(rule)
    assert not found.tried.any()
    assert not found.trial_tokens.any()
    assert found.score.tolist() == rule.free.scores(b.rows)[0].tolist()


@pytest.mark.parametrize("overhead", [0.05, 0.1, 0.3])
def test_trials_cost_no_more_than_their_share_and_one_trial(boundaries: Boundaries, overhead: float) -> None:
    b = boundaries
    found = b.score(some_rule(low=0.0, high=1.0, overhead=overhead))
    before = found.trial_tokens - np.where(found.tried, b.trial, 0)
    allowed = before <= overhead * b.end
    assert found.tried.tolist() == allowed.tolist()
    assert (found.trial_tokens <= overhead * b.end + b.trial.max()).all()
    first = np.flatnonzero(np.diff(b.rollout, prepend=-1))
    assert found.tried[first].all(), "the first trial is always within the share"


def test_costs_start_at_zero_in_each_rollout(boundaries: Boundaries) -> None:
    found = boundaries.score(some_rule(low=0.0, high=1.0, overhead=99.0))
    for rollout in np.unique(boundaries.rollout):
        mine = boundaries.rollout == rollout
        assert found.trial_tokens[mine].tolist() == np.cumsum(boundaries.trial[mine]).tolist()


def test_a_rule_without_paid_evidence_never_wants_a_trial(boundaries: Boundaries) -> None:
    rule = StopRule(some_rule().free, None, low=0.0, high=1.0)
    assert not boundaries.score(rule).tried.any()
    assert not RuleState(rule).wants_trial(0.5, 100)


def test_no_boundaries_have_no_scores(boundaries: Boundaries) -> None:
    found = replace(boundaries, rows=np.zeros((0, FREE), np.float32), rollout=boundaries.rollout[:0]).score(some_rule())
    assert [len(part) for part in (found.score, found.hopeless, found.trial_tokens, found.tried)] == [0] * 4


@pytest.mark.parametrize("size", [1, 2])
def test_classes_that_never_occurred_have_probability_zero(size: int) -> None:
    chances = {READY: 0.7, HOPEFUL: 0.2, HOPELESS: 0.1}
    for names in ((READY, HOPEFUL), (HOPELESS, READY), (HOPEFUL, HOPELESS), (READY, HOPEFUL, HOPELESS)):
        total = sum(chances[name] for name in names)
        evidence = Evidence(constant([chances[name] / total for name in names], 3), names)
        score, hopeless = evidence.scores(np.zeros((size, 3)))
        wanted = (1 - chances[HOPEFUL] / total if HOPEFUL in names else 1.0, 0.1 / total if HOPELESS in names else 0.0)
        assert np.allclose(score, wanted[0])
        assert np.allclose(hopeless, wanted[1])
        assert len(score) == len(hopeless) == size


def test_hopelessness_is_by_the_latest_evidence() -> None:
    rule = StopRule(
        Evidence(constant([0.1, 0.6, 0.3], 4), CLASSES), Evidence(constant([0.3, 0.2, 0.5], 8), CLASSES), 0.0, 1.0
    )
    walk = RuleState(rule)
    assert walk.score_free(np.zeros(3, np.float32), np.zeros(1, np.float32)) == pytest.approx(0.9)
    assert walk.hopeless == pytest.approx(0.6)
    assert walk.wants_trial(0.9, 10)
    assert walk.score_with_trial("5", 0.9, 7, None) == pytest.approx(0.7)
    assert walk.hopeless == pytest.approx(0.2)
    assert (walk.trial_tokens, walk.answers) == (7, ["5"])
    assert not walk.wants_trial(0.9, 69)
    assert walk.wants_trial(0.9, 70)
