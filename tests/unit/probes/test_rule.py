"""The stop rule: what is free and what trials add, asked for where it may be; live and on recorded data alike."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from tersely.probes.calibrate.data import Boundaries, read_boundaries
from tersely.probes.calibrate.readiness import walked
from tersely.probes.features import FEATURES, TRIAL_FEATURES, ThoughtReading, features, trial_features
from tersely.probes.rule import HOPEFUL, HOPELESS, READY
from tersely.probes.rule import Evidence, StopRule, Walk, walk_all

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


def walked_live(rule: StopRule, b: Boundaries) -> list[tuple[float, float, int, bool]]:
    """Score, hopelessness, cost and whether a trial was asked, one boundary after the other as a policy sees them.

    Answers are texts here, as they are live.
    """
    made: list[tuple[float, float, int, bool]] = []
    walk, last = Walk(rule), -1
    for place in range(len(b)):
        if b.rollout[place] != last:
            walk, last = Walk(rule), int(b.rollout[place])
        score = walk.free(b.rows[place][: len(FEATURES)], b.rows[place][len(FEATURES) :])
        asked = bool(b.trial[place]) and walk.wants_trial(score, int(b.end[place]))
        if asked:
            stated = None if b.stated[place] < 0 else f"answer {b.stated[place]}"
            said = f"answer {b.said[place]}"
            score = walk.paid(said, float(b.confidence[place]), int(b.trial[place]), stated)
        made.append((score, walk.hopeless, walk.tokens, asked))
    return made


@pytest.mark.parametrize(("low", "high", "overhead"), [(0.0, 1.0, 9.0), (0.3, 0.8, 0.1), (0.0, 1.0, 0.02)])
def test_live_and_recorded_are_one_walk(boundaries: Boundaries, low: float, high: float, overhead: float) -> None:
    rule = some_rule(low=low, high=high, overhead=overhead)
    found = walked(rule, boundaries)
    score, hopeless, paid, asked = (np.array(column) for column in zip(*walked_live(rule, boundaries), strict=True))
    np.testing.assert_allclose(found.score, score, atol=1e-5)
    np.testing.assert_allclose(found.hopeless, hopeless, atol=1e-5)
    assert found.paid.tolist() == paid.tolist()
    assert found.asked.tolist() == asked.tolist()
    assert 0 < found.asked.sum() < len(boundaries) or (low, high, overhead) == (0.0, 1.0, 9.0)


def test_trials_are_asked_inside_the_band_alone(boundaries: Boundaries) -> None:
    free = some_rule().free.scores(boundaries.rows)[0]
    low, high = np.quantile(free, [0.3, 0.6])
    found = walked(some_rule(low=low, high=high, overhead=99.0), boundaries)
    assert found.asked.tolist() == ((free >= low) & (free < high)).tolist()
    assert found.score[~found.asked].tolist() == free[~found.asked].tolist()
    assert (np.abs(found.score - free)[found.asked] > 1e-6).any()


def test_a_trial_that_could_not_be_is_not_asked(boundaries: Boundaries) -> None:
    b, rule = boundaries, some_rule(low=0.0, high=1.0, overhead=99.0)
    none = np.zeros_like(b.trial)
    found = walk_all(rule, b.rows, b.end, b.said, b.confidence, none, b.stated, b.rollout)
    assert not found.asked.any()
    assert not found.paid.any()
    assert found.score.tolist() == rule.free.scores(b.rows)[0].tolist()


@pytest.mark.parametrize("overhead", [0.05, 0.1, 0.3])
def test_trials_cost_no_more_than_their_share_and_one_trial(boundaries: Boundaries, overhead: float) -> None:
    b = boundaries
    found = walked(some_rule(low=0.0, high=1.0, overhead=overhead), b)
    before = found.paid - np.where(found.asked, b.trial, 0)
    allowed = before <= overhead * b.end
    assert found.asked.tolist() == allowed.tolist()
    assert (found.paid <= overhead * b.end + b.trial.max()).all()
    first = np.flatnonzero(np.diff(b.rollout, prepend=-1))
    assert found.asked[first].all(), "the first one is always within the share"


def test_costs_begin_anew_with_each_rollout(boundaries: Boundaries) -> None:
    found = walked(some_rule(low=0.0, high=1.0, overhead=99.0), boundaries)
    for rollout in np.unique(boundaries.rollout):
        mine = boundaries.rollout == rollout
        assert found.paid[mine].tolist() == np.cumsum(boundaries.trial[mine]).tolist()


def test_a_rule_without_paid_evidence_never_asks(boundaries: Boundaries) -> None:
    rule = StopRule(some_rule().free, None, low=0.0, high=1.0)
    assert not walked(rule, boundaries).asked.any()
    assert not Walk(rule).wants_trial(0.5, 100)


def test_nothing_recorded_is_nothing_walked() -> None:
    empty = np.zeros(0)
    found = walk_all(some_rule(), np.zeros((0, FREE), np.float32), *[empty] * 6)
    assert [len(part) for part in (found.score, found.hopeless, found.paid, found.asked)] == [0] * 4


@pytest.mark.parametrize("size", [1, 2])
def test_classes_that_never_occurred_have_no_chance(size: int) -> None:
    chances = {READY: 0.7, HOPEFUL: 0.2, HOPELESS: 0.1}
    for names in ((READY, HOPEFUL), (HOPELESS, READY), (HOPEFUL, HOPELESS), (READY, HOPEFUL, HOPELESS)):
        total = sum(chances[name] for name in names)
        evidence = Evidence(constant([chances[name] / total for name in names], 3), names)
        score, hopeless = evidence.scores(np.zeros((size, 3)))
        wanted = (1 - chances[HOPEFUL] / total if HOPEFUL in names else 1.0, 0.1 / total if HOPELESS in names else 0.0)
        assert np.allclose(score, wanted[0])
        assert np.allclose(hopeless, wanted[1])
        assert len(score) == len(hopeless) == size


def test_hopelessness_is_that_of_the_latest_evidence() -> None:
    rule = StopRule(
        Evidence(constant([0.1, 0.6, 0.3], 4), CLASSES), Evidence(constant([0.3, 0.2, 0.5], 8), CLASSES), 0.0, 1.0
    )
    walk = Walk(rule)
    assert walk.free(np.zeros(3, np.float32), np.zeros(1, np.float32)) == pytest.approx(0.9)
    assert walk.hopeless == pytest.approx(0.6)
    assert walk.wants_trial(0.9, 10)
    assert walk.paid("5", 0.9, 7, None) == pytest.approx(0.7)
    assert walk.hopeless == pytest.approx(0.2)
    assert (walk.tokens, walk.said) == (7, ["5"])
    assert not walk.wants_trial(0.9, 69)
    assert walk.wants_trial(0.9, 70)


# -- what the rule reads -------------------------------------------------------------------------------------------


def thought(answer: str | None = None, **more: Any) -> ThoughtReading:
    numbers = dict.fromkeys(("entropy_mean", "entropy_max", "entropy_last", "top_min", "margin_mean"), 0.5)
    return ThoughtReading(**{"tokens": 10, "reflective": False, "answer": answer, **numbers, **more})


def named(thoughts: list[ThoughtReading]) -> dict[str, float]:
    return dict(zip(FEATURES, features(thoughts).tolist(), strict=True))


def test_features_by_hand() -> None:
    made = named(
        [
            thought("5", tokens=10, entropy_mean=0.2, entropy_max=1.5),
            thought("6", tokens=20, entropy_mean=0.4, entropy_max=0.75),
            thought(tokens=10, entropy_mean=0.6),
            thought(
                "6", tokens=40, entropy_mean=0.1, entropy_max=0.875, reflective=True, entropy_last=0.0, top_min=0.25
            ),
        ]
    )
    assert made["thoughts"] == 4
    assert made["log tokens"] == pytest.approx(np.log(81))
    assert made["log tokens of the thought"] == pytest.approx(np.log(41))
    assert made["reflective"] == 1
    assert made["mean entropy of the thought"] == pytest.approx(0.1)
    assert made["mean entropy so far"] == pytest.approx((0.2 * 10 + 0.4 * 20 + 0.6 * 10 + 0.1 * 40) / 80)
    assert (made["last entropy"], made["smallest top probability of the thought"]) == (0, 0.25)
    assert (made["states an answer"], made["answers stated"]) == (1, 3)
    assert (made["latest answers that agree"], made["changes of answer"]) == (2, 1)
    assert made["least of the largest entropies behind the answer"] == 0.75


def test_features_where_no_answer_was_stated() -> None:
    made = named([thought(entropy_max=0.5), thought(entropy_max=2.0), thought(entropy_max=1.0, tokens=0)])
    assert [made[n] for n in ("states an answer", "answers stated", "latest answers that agree")] == [0, 0, 0]
    assert made["changes of answer"] == 0
    assert made["least of the largest entropies behind the answer"] == 2
    assert np.isfinite(list(made.values())).all()
    assert np.isfinite(features([thought(tokens=0)])).all()


def test_features_of_trials() -> None:
    sure, agrees, latest, count = trial_features(["5", "6", "6"], 0.75, "6").tolist()
    assert sure == pytest.approx(np.log(3))
    assert (agrees, latest, count) == (1, 2, 3)
    assert trial_features([3], 0.5, None).tolist() == [0, 0, 1, 1]
    for certain, said in product((0.0, 1.0), ("5", 5)):
        assert np.isfinite(trial_features([said], certain, said)).all()
