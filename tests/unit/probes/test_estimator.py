"""The classifier behind the probes, on planted problems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from tersely.errors import OptionError
from tersely.probes.estimator import ProbeClassifier

from ...support.refusals import refused


def make_xor(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows, np.where(rows[:, 0] * rows[:, 1] > 0, "yes", "no")


def make_linear(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes for which logistic regression is the right model."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=(d, 3)) * 2 / np.sqrt(d)
    rows = rng.normal(size=(n, d))
    return rows, (rows @ direction + rng.gumbel(size=(n, 3))).argmax(axis=1)


def make_repeated_questions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Questions with random labels and eight almost equal rows each: there is nothing to learn."""
    rng = np.random.default_rng(seed)
    centres, coin = rng.normal(size=(n, 4)), rng.integers(0, 2, n)
    question = np.repeat(np.arange(n), 8)
    return centres[question] + 0.01 * rng.normal(size=(8 * n, 4)), coin[question], question


def test_scikit_learn_accepts_the_estimator() -> None:
    found = check_estimator(ProbeClassifier(), on_skip=None)
    assert {result["status"] for result in found} <= {"passed", "skipped"}
    assert sum(result["status"] == "passed" for result in found) > 50


def test_it_learns_what_a_linear_model_cannot() -> None:
    rows, labels = make_xor(600, 6, seed=0)
    fresh, truth = make_xor(2000, 6, seed=1)
    probe = ProbeClassifier().fit(rows, labels)
    one_layer = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    assert probe.n_epochs_ > 0
    assert probe.score(fresh, truth) > 0.9 > 0.6 > one_layer.score(fresh, truth)
    assert log_loss(truth, probe.predict_proba(fresh)) < 0.3


@pytest.mark.parametrize(("n", "d"), [(300, 600), (500, 50)])
def test_it_is_not_worse_than_a_linear_model_where_that_is_right(n: int, d: int) -> None:
    rows, labels = make_linear(n, d, seed=0)
    fresh, truth = make_linear(3000, d, seed=1)
    probe = ProbeClassifier().fit(rows, labels)
    lines = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(rows, labels)
        for strength in (0.01, 1.0)
    ]
    best = min(log_loss(truth, line.predict_proba(fresh)) for line in lines)
    assert log_loss(truth, probe.predict_proba(fresh)) < best + 0.03
    assert probe.score(fresh, truth) > max(line.score(fresh, truth) for line in lines) - 0.03


def test_rows_of_one_question_are_held_out_together() -> None:
    rows, labels, questions = make_repeated_questions(100)
    probe = ProbeClassifier(epochs=30).fit(rows, labels, groups=[f"question {q}" for q in questions])
    held = set(questions[probe.held_out_])
    assert len(held) == 20
    assert len(probe.held_out_) == 160
    assert probe.n_epochs_ == 0
    # If rows of a question are on both sides, memorising looks like learning.
    leaking = ProbeClassifier(epochs=30).fit(rows, labels)
    assert leaking.held_out_loss_ is not None
    assert probe.held_out_loss_ is not None
    assert leaking.held_out_loss_ < 0.6 < 0.65 < probe.held_out_loss_


def test_training_is_reproducible_by_seed() -> None:
    rows, labels = make_xor(300, 4, seed=0)
    one, same, other = (ProbeClassifier(epochs=5, random_state=s).fit(rows, labels).to_network() for s in (1, 1, 2))
    assert one == same != other


def test_every_class_remains_in_the_training_rows() -> None:
    rows, labels = make_linear(200, 5, seed=0)
    labels[labels == 2] = 0
    labels[7] = 2
    for seed in range(5):
        probe = ProbeClassifier(epochs=1, random_state=seed).fit(rows, labels)
        assert 7 not in probe.held_out_
        assert list(probe.classes_) == [0, 1, 2]


def test_few_questions_keep_it_linear() -> None:
    rows, labels, questions = make_repeated_questions(39)
    probe = ProbeClassifier().fit(rows, labels, groups=questions)
    assert (probe.n_epochs_, len(probe.held_out_), probe.held_out_loss_) == (0, 0, None)
    assert probe.network_.w1.shape == (4, 4)


def test_units_and_origins_of_columns_do_not_matter() -> None:
    rows, labels = make_xor(400, 4, seed=0)
    units, origins = np.array([1e-3, 1, 50, 1e4]), np.array([5, -30, 0, 1e5])
    one, other = (ProbeClassifier(epochs=40).fit(x, labels) for x in (rows, rows * units + origins))
    assert one.n_epochs_ == other.n_epochs_ > 0
    assert np.allclose(one.predict_proba(rows), other.predict_proba(rows * units + origins), atol=1e-2)


def test_a_constant_column_is_ignored() -> None:
    rows, labels = make_xor(400, 4, seed=0)
    rows[:, 2] = 0.1
    probe = ProbeClassifier(epochs=40).fit(rows, labels)
    assert probe.n_epochs_ > 0
    moved = rows.copy()
    moved[:, 2] = 50
    assert np.array_equal(probe.predict_proba(rows), probe.predict_proba(moved))


def test_invalid_training_data_and_options_are_refused() -> None:
    rows, labels = make_linear(60, 4, seed=0)
    with pytest.raises(OptionError) as error:
        ProbeClassifier().fit(rows, np.ones(60, int))
    assert error.value.code == "single_class"
    with pytest.raises(ValueError):  # noqa: PT011
        ProbeClassifier().fit(rows[:1], labels[:1])
    with pytest.raises(ValueError):  # noqa: PT011
        ProbeClassifier().fit(np.where(rows > 1, np.inf, rows), labels)
    with pytest.raises(ValueError):  # noqa: PT011
        ProbeClassifier().fit(rows, labels, groups=np.arange(59))


def test_calibration_corrects_overconfidence() -> None:
    rows, labels = make_linear(200, 100, seed=0)
    sure = ProbeClassifier().fit(rows, labels)
    sure.network_ = replace(sure.network_, temperature=np.full((), 0.1, np.float32))
    sure.network_ = replace(sure.network_, w2=sure.network_.w2 * 10, b2=sure.network_.b2 * 10)
    held, fresh = make_linear(300, 100, seed=1), make_linear(3000, 100, seed=2)
    calm = sure.calibrate(*held)
    before, after = (log_loss(fresh[1], p.predict_proba(fresh[0])) for p in (sure, calm))
    assert after < 1.1 < 3 < before
    assert sure.network_.temperature == np.float32(0.1), "the estimator itself is left alone"
    assert calm.calibrate(*held).network_ == calm.network_, "a second calibration replaces the first"


def test_calibration_on_few_rows_stays_moderate() -> None:
    rows, labels = make_linear(300, 10, seed=0)
    probe = ProbeClassifier(epochs=1).fit(rows, labels)
    right = np.flatnonzero(probe.predict(rows) == labels)[:5]
    assert probe.calibrate(rows[right], labels[right]).network_.temperature > 0.1
    with refused(OptionError):
        probe.calibrate(rows[:3], [0, 1, 9])
