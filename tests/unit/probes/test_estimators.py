"""Probes as they learn: the network, its training, and the estimator on planted problems."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from tersely.errors import OptionError
from tersely.probes.estimator import ProbeClassifier
from tersely.probes.network import RATE, descent, forward, get_layers, gradient
from tersely.probes.network import CLIP, Network


def numbers(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, np.float32)


def network(d: int = 5, hidden: int = 7, classes: int = 3, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    mean, gain, w1, b1, w2, b2 = (
        numbers(rng.normal(size=shape)) for shape in ((d,), (d,), (d, hidden), (hidden,), (hidden, classes), (classes,))
    )
    return Network(mean, gain, w1, b1, w2, b2, numbers(1), numbers(np.zeros(classes)))


def xor(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows, np.where(rows[:, 0] * rows[:, 1] > 0, "yes", "no")


def linear(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes that logistic regression is the right model of."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=(d, 3)) * 2 / np.sqrt(d)
    rows = rng.normal(size=(n, d))
    return rows, (rows @ direction + rng.gumbel(size=(n, 3))).argmax(axis=1)


def repeated_questions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Questions whose label is a coin toss, with eight rows each that are almost equal: nothing is to be learnt."""
    rng = np.random.default_rng(seed)
    centres, coin = rng.normal(size=(n, 4)), rng.integers(0, 2, n)
    question = np.repeat(np.arange(n), 8)
    return centres[question] + 0.01 * rng.normal(size=(8 * n, 4)), coin[question], question


def test_scikit_learn_accepts_the_estimator() -> None:
    found = check_estimator(ProbeClassifier(), on_skip=None)
    assert {result["status"] for result in found} <= {"passed", "skipped"}
    assert sum(result["status"] == "passed" for result in found) > 50


def test_a_network_says_what_its_numbers_say() -> None:
    net = replace(network(), temperature=numbers(2), bias=numbers([0.5, 0, -0.5]))
    rows = np.random.default_rng(1).normal(size=(20, 5))
    hidden = np.maximum((rows - net.mean) * net.gain @ net.w1 + net.b1, 0)
    exps = np.exp((hidden @ net.w2 + net.b2) / 2 + [0.5, 0, -0.5])
    assert np.allclose(net.proba(rows), exps / exps.sum(axis=1, keepdims=True), atol=1e-5)
    assert net.proba(rows).dtype == np.float32


def test_rows_that_cannot_be_read_are_refused() -> None:
    rows = np.zeros((2, 5))
    rows[1, 3] = np.nan
    with pytest.raises(OptionError, match="feature 3 of row 1 is nan; accepted: finite"):
        network().proba(rows)
    with pytest.raises(OptionError, match="feature 0 of row 0 is inf"):
        network().proba(np.full((1, 5), 1e60))
    with pytest.raises(OptionError, match=r"shape \(5,\); accepted: \(rows, 5\)"):
        network().proba(np.zeros(5))


def test_a_row_far_from_all_seen_counts_as_one_at_the_edge() -> None:
    net = replace(network(), gain=numbers(np.ones(5)))
    far, edge = np.full((1, 5), 1e30), net.mean + CLIP
    assert np.array_equal(net.proba(far), net.proba(edge[None]))


def test_numbers_of_a_network_are_frozen_and_fit_each_other() -> None:
    net = network()
    with pytest.raises(ValueError, match="read-only"):
        net.w1[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        net.w1 = net.w1  # type: ignore[misc]
    with pytest.raises(OptionError, match=r"array b1 of a network has shape \(4,\); accepted: \(h = 7\)"):
        replace(net, b1=numbers(np.zeros(4)))
    with pytest.raises(OptionError, match="array w2 of a network holds NaN"):
        replace(net, w2=numbers(np.full((7, 3), np.nan)))
    with pytest.raises(OptionError, match="temperature of a network is 0"):
        replace(net, temperature=numbers(0))
    with pytest.raises(OptionError, match="accepted: float32"):
        Network.from_arrays({name: array.astype(np.float64) for name, array in net.arrays().items()})
    with pytest.raises(OptionError, match="arrays of a network are"):
        Network.from_arrays({"mean": net.mean})
    assert Network.from_arrays(net.arrays()) == net != network(seed=1)


def test_a_temperature_alone_changes_no_choice() -> None:
    rows = np.random.default_rng(1).normal(size=(500, 5))
    cold, hot = (replace(network(), temperature=numbers(t)).proba(rows) for t in (0.2, 5))
    assert np.array_equal(cold.argmax(axis=1), hot.argmax(axis=1))
    assert cold.max(axis=1).mean() > hot.max(axis=1).mean() + 0.1


def test_one_row_costs_microseconds_and_no_library() -> None:
    net, row = network(1024, 256), np.zeros((1, 1024), np.float32)
    best = 1.0
    for _ in range(300):
        start = time.perf_counter()
        net.proba(row)
        best = min(best, time.perf_counter() - start)
    assert best < 100e-6
    code = (
        "import sys, tersely.probes.artifact, tersely.probes.difficulty, tersely.probes.readiness; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "sklearn", "scipy"}.isdisjoint(done.stdout.split())


def test_two_layers_start_as_one() -> None:
    rng = np.random.default_rng(0)
    rows, weights, bias = rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(6, 3)), rng.normal(size=3)
    layers = get_layers(weights, bias, hidden=50, seed=0)
    assert layers[0].shape == (6, 50)
    assert np.allclose(forward(rows, layers), rows @ weights + bias, atol=1e-5)


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    rows, codes, weights = rng.normal(size=(9, 4)), rng.integers(0, 3, 9), rng.uniform(size=9)
    layers = [rng.normal(size=shape) for shape in ((4, 5), (5,), (5, 3), (3,))]
    slopes = gradient(rows, np.eye(3)[codes], weights, layers)  # type: ignore[arg-type]

    def loss() -> float:
        logits = forward(rows, layers)  # type: ignore[arg-type]
        return float(weights @ (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(9), codes]))

    for layer, slope in zip(layers, slopes, strict=True):
        for place in np.ndindex(layer.shape):
            kept = layer[place]
            layer[place] = kept + 1e-6
            above = loss()
            layer[place] = kept - 1e-6
            below, layer[place] = loss(), kept
            assert slope[place] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_the_first_step_of_adamw_is_its_rate_after_decay() -> None:
    rows, targets = np.ones((1, 2), np.float32), np.array([[1, 0]], np.float32)
    start = get_layers(np.array([[0.5, -0.5], [0.25, 1]]), np.zeros(2), 0, 0)
    slopes = gradient(rows, targets, np.ones(1, np.float32), start)
    after = next(descent(rows, targets, np.ones(1, np.float32), start, decay=10.0, epochs=1, seed=0))
    for place, kept in enumerate((0.99, 1, 0.99, 1)):
        assert np.allclose(after[place], start[place] * kept - RATE * np.sign(slopes[place]), atol=1e-6)


def test_it_learns_what_no_line_can_tell() -> None:
    rows, labels = xor(600, 6, seed=0)
    fresh, truth = xor(2000, 6, seed=1)
    probe = ProbeClassifier().fit(rows, labels)
    one_layer = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    assert probe.n_epochs_ > 0
    assert probe.score(fresh, truth) > 0.9 > 0.6 > one_layer.score(fresh, truth)
    assert log_loss(truth, probe.predict_proba(fresh)) < 0.3


@pytest.mark.parametrize(("n", "d"), [(300, 600), (500, 50)])
def test_it_is_no_worse_than_a_line_where_that_is_right(n: int, d: int) -> None:
    rows, labels = linear(n, d, seed=0)
    fresh, truth = linear(3000, d, seed=1)
    probe = ProbeClassifier().fit(rows, labels)
    lines = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(rows, labels)
        for strength in (0.01, 1.0)
    ]
    best = min(log_loss(truth, line.predict_proba(fresh)) for line in lines)
    assert log_loss(truth, probe.predict_proba(fresh)) < best + 0.03
    assert probe.score(fresh, truth) > max(line.score(fresh, truth) for line in lines) - 0.03


def test_a_question_is_never_on_both_sides() -> None:
    rows, labels, questions = repeated_questions(100)
    probe = ProbeClassifier(epochs=30).fit(rows, labels, groups=[f"question {q}" for q in questions])
    held = set(questions[probe.held_out_])
    assert len(held) == 20
    assert len(probe.held_out_) == 160
    assert probe.n_epochs_ == 0
    # Rows apart from their questions: the held-out ones are then known already, and memory looks like knowledge.
    leaking = ProbeClassifier(epochs=30).fit(rows, labels)
    assert leaking.held_out_loss_ is not None
    assert probe.held_out_loss_ is not None
    assert leaking.held_out_loss_ < 0.6 < 0.65 < probe.held_out_loss_


def test_learning_repeats_by_seed() -> None:
    rows, labels = xor(300, 4, seed=0)
    one, same, other = (ProbeClassifier(epochs=5, random_state=s).fit(rows, labels).to_network() for s in (1, 1, 2))
    assert one == same != other


def test_every_class_stays_to_learn_from() -> None:
    rows, labels = linear(200, 5, seed=0)
    labels[labels == 2] = 0
    labels[7] = 2
    for seed in range(5):
        probe = ProbeClassifier(epochs=1, held_out=0.9, random_state=seed).fit(rows, labels)
        assert 7 not in probe.held_out_
        assert list(probe.classes_) == [0, 1, 2]


def test_few_questions_keep_it_linear() -> None:
    rows, labels, questions = repeated_questions(39)
    probe = ProbeClassifier().fit(rows, labels, groups=questions)
    assert (probe.n_epochs_, len(probe.held_out_), probe.held_out_loss_) == (0, 0, None)
    assert probe.network_.w1.shape == (4, 4)


def test_units_and_origins_of_columns_do_not_matter() -> None:
    rows, labels = xor(400, 4, seed=0)
    units, origins = np.array([1e-3, 1, 50, 1e4]), np.array([5, -30, 0, 1e5])
    one, other = (ProbeClassifier(epochs=40).fit(x, labels) for x in (rows, rows * units + origins))
    assert one.n_epochs_ == other.n_epochs_ > 0
    assert np.allclose(one.predict_proba(rows), other.predict_proba(rows * units + origins), atol=1e-2)


def test_a_constant_column_says_nothing_later() -> None:
    rows, labels = xor(400, 4, seed=0)
    rows[:, 2] = 0.1
    probe = ProbeClassifier(epochs=40).fit(rows, labels)
    assert probe.n_epochs_ > 0
    moved = rows.copy()
    moved[:, 2] = 50
    assert np.array_equal(probe.predict_proba(rows), probe.predict_proba(moved))


def test_what_cannot_be_learnt_from_is_refused() -> None:
    rows, labels = linear(60, 4, seed=0)
    with pytest.raises(OptionError, match=r"all 60 samples are of one class, 1; .* Collect more questions"):
        ProbeClassifier().fit(rows, np.ones(60, int))
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        ProbeClassifier().fit(rows[:1], labels[:1])
    with pytest.raises(ValueError, match="Input X contains infinity"):
        ProbeClassifier().fit(np.where(rows > 1, np.inf, rows), labels)
    with pytest.raises(OptionError, match="sample_weight has shape"):
        ProbeClassifier().fit(rows, labels, np.full(60, -1))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ProbeClassifier().fit(rows, labels, groups=np.arange(59))
    with pytest.raises(OptionError, match="hidden is 0; accepted: 1 or more"):
        ProbeClassifier(hidden=0).fit(rows, labels)
    with pytest.raises(OptionError, match="held_out is 1"):
        ProbeClassifier(held_out=1).fit(rows, labels)


def test_calibration_takes_back_what_was_too_sure() -> None:
    rows, labels = linear(200, 100, seed=0)
    sure = ProbeClassifier().fit(rows, labels)
    sure.network_ = replace(sure.network_, temperature=numbers(0.1))
    sure.network_ = replace(sure.network_, w2=sure.network_.w2 * 10, b2=sure.network_.b2 * 10)
    held, fresh = linear(300, 100, seed=1), linear(3000, 100, seed=2)
    calm = sure.calibrate(*held)
    before, after = (log_loss(fresh[1], p.predict_proba(fresh[0])) for p in (sure, calm))
    assert after < 1.1 < 3 < before
    assert sure.network_.temperature == np.float32(0.1), "the estimator itself is left alone"
    assert calm.calibrate(*held).network_ == calm.network_, "a second calibration replaces the first"


def test_calibration_on_few_rows_stays_modest() -> None:
    rows, labels = linear(300, 10, seed=0)
    probe = ProbeClassifier(epochs=1).fit(rows, labels)
    right = np.flatnonzero(probe.predict(rows) == labels)[:5]
    assert probe.calibrate(rows[right], labels[right]).network_.temperature > 0.1
    with pytest.raises(OptionError, match="labels hold the class 9; accepted: 0, 1, 2"):
        probe.calibrate(rows[:3], [0, 1, 9])


def test_an_estimator_comes_back_from_its_network() -> None:
    rows, labels = xor(100, 3, seed=0)
    probe = ProbeClassifier(epochs=2).fit(rows, labels)
    back = ProbeClassifier.from_network(probe.to_network(), probe.classes_)
    assert np.array_equal(back.predict_proba(rows), probe.predict_proba(rows))
    assert np.array_equal(back.predict(rows), probe.predict(rows))
    with pytest.raises(OptionError, match="accepted: 2 different ones, sorted"):
        ProbeClassifier.from_network(probe.to_network(), ["yes", "no"])
