"""Collected records as training data: outcomes of stopping, boundaries, questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError
from tersely.probes.calibrate.data import Boundaries, concatenate, read_boundaries, read_questions
from tersely.probes.records import UNKNOWN, RecordsError
from tersely.probes.risk_control import risk_curve

from ...support.planted_records import CLOSING, keep_rows, planted, replace_columns
from ...support.refusals import refused

MARK = "fe" * 32
N = 460
ALPHA = 0.1


def stop_by_hand(b: Boundaries, score: Any, paid: Any, threshold: float) -> tuple[float, float]:
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
    b = read_boundaries(keep_rows(records, "boundaries", bare), -1)
    rng = np.random.default_rng(0)
    score, asked = np.round(rng.random(len(b)), 1), rng.random(len(b)) < 0.5
    paid = np.zeros(len(b), np.int64)
    for rollout in np.unique(b.rollout):
        mine = b.rollout == rollout
        paid[mine] = np.cumsum(np.where(asked, b.trial, 0)[mine])
    made = b.outcomes(score, paid if costly else None)
    assert made.n == len(b.full) == 60
    for threshold in (0.0, 0.2, 0.45, 0.8, 1.0):
        harm, saved = risk_curve(made, [threshold])
        expected = stop_by_hand(b, score, paid if costly else np.zeros(len(b)), threshold)
        assert (float(harm[0]), float(saved[0])) == pytest.approx(expected), threshold
    assert risk_curve(made, [0.0])[0][0] > 0, "stopping immediately does harm"


def test_boundaries_of_one_tier_and_rollout() -> None:
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
    with refused(OptionError, "unknown_name"):
        read_boundaries(records, -1, "normla")


def test_without_labels_the_final_answer_counts_as_right() -> None:
    live, known = planted(40, seed=7, live=True), planted(40, seed=7, solved=0.6)
    unlabelled, labelled = read_boundaries(live, -1), read_boundaries(known, -1)
    assert unlabelled.final.all()
    assert not labelled.final.all()
    owner = live["rollouts.tier"][live["boundaries.rollout"]] == 2
    assert unlabelled.now.tolist() == live["boundaries.same"][owner].astype(bool).tolist()
    assert 0 < unlabelled.now.mean() < 1


def test_questions_have_the_outcomes_of_each_tier() -> None:
    records = planted(20, seed=8, rollouts=3)
    found = read_questions(records, -1, np.arange(20) >= 5)
    assert (len(found), found.right.shape) == (15, (15, 4))
    mine = (records["rollouts.question"] == 5) & (records["rollouts.tier"] == 3)
    assert mine.sum() == 3
    assert found.right[0, 3] == pytest.approx(records["rollouts.right"][mine].mean())
    spent = (records["rollouts.thinking"] + records["rollouts.answer"])[mine]
    assert found.tokens[0, 3] == pytest.approx(spent.mean())
    with pytest.raises(RecordsError) as error:
        read_questions(keep_rows(records, "rollouts", ~mine), -1)
    assert error.value.code == "incomplete"


def test_difficulty_needs_labels() -> None:
    records = planted(10)
    right = records["rollouts.right"].copy()
    right[3] = UNKNOWN
    with pytest.raises(RecordsError) as error:
        read_questions(replace_columns(records, rollouts__right=right), -1)
    assert error.value.code == "no_labels"


@pytest.mark.parametrize("table", ["questions", "boundaries"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_hidden_states_that_are_not_finite_are_refused(table: str, value: float) -> None:
    records = planted(20, layers=(2, -1))
    states = records[f"{table}.state.2"].copy()
    states[3, 4] = value
    broken = replace_columns(records, **{f"{table}__state.2": states})
    read = read_questions if table == "questions" else read_boundaries
    with pytest.raises(RecordsError) as error:
        read(broken, 2)
    assert error.value.code == "not_finite"
    read(broken, -1)


def test_another_layer_has_its_own_states() -> None:
    records = planted(10, layers=(2, -1))
    one, other = read_questions(records, 2), read_boundaries(records, 2)
    assert np.array_equal(one.state, records["questions.state.2"])
    assert np.array_equal(other.rows[:, -8:], read_boundaries(records, -1).rows[:, :-9:-1])
