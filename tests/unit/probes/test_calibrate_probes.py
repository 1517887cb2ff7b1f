"""Collected records as what the probes learn from: outcomes of stopping, boundaries, questions, controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes.calibrate.difficulty import by_length, by_words
from tersely.probes.stats import quality
from tersely.probes.calibrate.data import Boundaries, concatenate, read_boundaries, read_questions
from tersely.probes.records import UNKNOWN, RecordsError
from tersely.probes.risk_control import curve

from ...support.planted_records import CLOSING, changed, planted, rows_of

MARK = "fe" * 32
N = 460
ALPHA = 0.1


def stopped(b: Boundaries, score: Any, paid: Any, threshold: float) -> tuple[float, float]:
    """Harm rate and share of tokens saved, rollout by rollout."""
    harms, spent = 0, 0
    for rollout, full in enumerate(b.full.tolist()):
        costs, total = 0, full
        for place in np.flatnonzero(b.rollout == rollout).tolist():
            costs = int(paid[place])
            if score[place] >= threshold:
                total = int(b.end[place]) + CLOSING + int(b.answer[rollout])
                harms += bool(b.final[place] and not b.now[place])
                break
        spent += total + costs
    return harms / len(b.full), 1 - spent / b.full.sum()


@pytest.mark.parametrize("costly", [False, True])
def test_outcomes_are_those_of_stopping_one_by_one(costly: bool) -> None:
    records = planted(60, seed=5)
    bare = records["boundaries.rollout"] % 5 != 0  # some rollouts have no boundary
    b = read_boundaries(rows_of(records, "boundaries", bare), -1)
    rng = np.random.default_rng(0)
    score, asked = np.round(rng.random(len(b)), 1), rng.random(len(b)) < 0.5
    paid = np.zeros(len(b), np.int64)
    for rollout in np.unique(b.rollout):
        mine = b.rollout == rollout
        paid[mine] = np.cumsum(np.where(asked, b.trial, 0)[mine])
    made = b.outcomes(score, paid if costly else None)
    assert made.n == len(b.full) == 60
    for threshold in (0.0, 0.2, 0.45, 0.8, 1.0):
        harm, saved = curve(made, [threshold])
        expected = stopped(b, score, paid if costly else np.zeros(len(b)), threshold)
        assert (float(harm[0]), float(saved[0])) == pytest.approx(expected), threshold
    assert curve(made, [0.0])[0][0] > 0, "stopping at once does harm"


def test_boundaries_are_those_of_the_tier_and_rollout_asked_for() -> None:
    records = planted(30, seed=6, rollouts=2)
    tier = records["rollouts.tier"][records["boundaries.rollout"]]
    number = records["rollouts.number"][records["boundaries.rollout"]]
    normal = read_boundaries(records, -1)
    assert len(normal) == ((tier == 2) & (number == 0)).sum()
    assert len(read_boundaries(records, -1, "hard", number=None)) == (tier == 3).sum()
    kept = np.arange(30) < 7
    few = read_boundaries(records, -1, keep=kept)
    assert set(few.question) == set(records.texts["hash"][:7])
    assert len(few.full) == 7
    assert np.unique(few.rollout).tolist() == list(range(7))
    both = concatenate([normal, few])
    assert len(both) == len(normal) + len(few)
    assert both.full.tolist() == normal.full.tolist() + few.full.tolist()
    assert both.rollout[len(normal) :].tolist() == (few.rollout + 30).tolist()
    with pytest.raises(OptionError, match=r"unknown tier 'normla'; did you mean 'normal'\?"):
        read_boundaries(records, -1, "normla")


def test_where_nobody_knows_the_last_answer_stands_for_the_right_one() -> None:
    live, known = planted(40, seed=7, live=True), planted(40, seed=7, solved=0.6)
    blind, seen = read_boundaries(live, -1), read_boundaries(known, -1)
    assert blind.final.all()
    assert not seen.final.all()
    owner = live["rollouts.tier"][live["boundaries.rollout"]] == 2
    assert blind.now.tolist() == live["boundaries.same"][owner].astype(bool).tolist()
    assert 0 < blind.now.mean() < 1


def test_questions_have_what_came_of_each_tier() -> None:
    records = planted(20, seed=8, rollouts=3)
    found = read_questions(records, -1, np.arange(20) >= 5)
    assert (len(found), found.right.shape) == (15, (15, 4))
    mine = (records["rollouts.question"] == 5) & (records["rollouts.tier"] == 3)
    assert mine.sum() == 3
    assert found.right[0, 3] == pytest.approx(records["rollouts.right"][mine].mean())
    spent = (records["rollouts.thinking"] + records["rollouts.answer"])[mine]
    assert found.tokens[0, 3] == pytest.approx(spent.mean())
    with pytest.raises(RecordsError, match="some questions lack a tier; go on with the collection until it is whole"):
        read_questions(rows_of(records, "rollouts", ~mine), -1)


def test_quality_by_hand() -> None:
    truth = np.array([False] * 50 + [True] * 50)
    perfect = quality(truth, truth.astype(float))
    assert (perfect.auroc, perfect.brier, perfect.ece, perfect.n, perfect.share) == (1, 0, 0, 100, 0.5)
    blind = quality(truth, np.full(100, 0.8))
    assert (blind.auroc, blind.low < 0.5 < blind.high) == (0.5, True)
    assert blind.brier == pytest.approx(0.5 * 0.04 + 0.5 * 0.64)
    assert quality(np.resize([False, True], 100), np.full(100, 0.8)).ece == pytest.approx(0.3)
    assert np.isnan(quality(truth[:50], np.zeros(50)).auroc)


def test_controls_see_what_is_theirs_alone() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.5
    words = np.where(truth, 20, 10) + rng.integers(0, 8, 300)
    texts = [("hard " if yes else "easy ") + " ".join(rng.choice(list("abcdef"), 5)) for yes in truth]
    fit, test = slice(0, 200), slice(200, 300)
    by_size = by_length(words[fit], truth[fit], words[test])
    by_text = by_words(texts[fit], truth[fit], texts[test])
    assert quality(truth[test], by_size).auroc > 0.95
    assert quality(truth[test], by_text).auroc > 0.95
    alone = np.arange(200) == 7
    assert by_words(texts[fit], alone, texts[test]).tolist() == [1 / 200] * 100, "one question teaches no words"


def test_rollouts_whose_right_answer_is_unknown_teach_no_difficulty() -> None:
    records = planted(10)
    right = records["rollouts.right"].copy()
    right[3] = UNKNOWN
    with pytest.raises(RecordsError, match="nobody knows which answers are right here"):
        read_questions(changed(records, rollouts__right=right), -1)
