"""The network of a probe, and its training with AdamW."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from numpy.typing import ArrayLike

from tersely.errors import OptionError
from tersely.probes.network import CLIP, LEARNING_RATE, Network, forward, gradient, init_layers, train_adamw

from ...support.refusals import refused


def to_float32(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, np.float32)


def make_network(d: int = 5, hidden: int = 7, classes: int = 3, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    mean, gain, w1, b1, w2, b2 = (
        to_float32(rng.normal(size=shape))
        for shape in ((d,), (d,), (d, hidden), (hidden,), (hidden, classes), (classes,))
    )
    return Network(mean, gain, w1, b1, w2, b2, to_float32(1), to_float32(np.zeros(classes)))


def test_probabilities_by_hand() -> None:
    net = replace(make_network(), temperature=to_float32(2), bias=to_float32([0.5, 0, -0.5]))
    rows = np.random.default_rng(1).normal(size=(20, 5))
    hidden = np.maximum((rows - net.mean) * net.gain @ net.w1 + net.b1, 0)
    exps = np.exp((hidden @ net.w2 + net.b2) / 2 + [0.5, 0, -0.5])
    assert np.allclose(net.proba(rows), exps / exps.sum(axis=1, keepdims=True), atol=1e-5)
    assert net.proba(rows).dtype == np.float32


def test_invalid_rows_are_refused() -> None:
    rows = np.zeros((2, 5))
    rows[1, 3] = np.nan
    with refused(OptionError, "not_finite"):
        make_network().proba(rows)
    with refused(OptionError, "not_finite"):
        make_network().proba(np.full((1, 5), 1e60))
    with refused(OptionError):
        make_network().proba(np.zeros(5))


def test_inputs_far_out_are_clipped() -> None:
    net = replace(make_network(), gain=to_float32(np.ones(5)))
    far, edge = np.full((1, 5), 1e30), net.mean + CLIP
    assert np.array_equal(net.proba(far), net.proba(edge[None]))


def test_arrays_are_frozen_and_must_fit_each_other() -> None:
    net = make_network()
    with pytest.raises(ValueError):  # noqa: PT011
        net.w1[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        net.w1 = net.w1  # type: ignore[misc]
    with refused(OptionError):
        replace(net, b1=to_float32(np.zeros(4)))
    with refused(OptionError):
        replace(net, w2=to_float32(np.full((7, 3), np.nan)))
    with refused(OptionError):
        replace(net, temperature=to_float32(0))
    assert Network(**net.arrays()) == net != make_network(seed=1)


def test_a_temperature_does_not_change_the_prediction() -> None:
    rows = np.random.default_rng(1).normal(size=(500, 5))
    cold, hot = (replace(make_network(), temperature=to_float32(t)).proba(rows) for t in (0.2, 5))
    assert np.array_equal(cold.argmax(axis=1), hot.argmax(axis=1))
    assert cold.max(axis=1).mean() > hot.max(axis=1).mean() + 0.1


def test_one_row_copies_no_weights_and_takes_no_library() -> None:
    net, row = make_network(1024, 256), np.zeros((1, 1024), np.float32)
    net.proba(row)
    tracemalloc.start()
    net.proba(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < net.w1.nbytes / 10
    code = "import sys, tersely.probes.io; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "sklearn", "scipy"}.isdisjoint(done.stdout.split())


def test_initial_layers_compute_one_linear_layer() -> None:
    rng = np.random.default_rng(0)
    rows, weights, bias = rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(6, 3)), rng.normal(size=3)
    layers = init_layers(weights, bias, hidden=50, seed=0)
    assert layers[0].shape == (6, 50)
    assert np.allclose(forward(rows, layers), rows @ weights + bias, atol=1e-5)


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    layers = [rng.normal(size=shape) for shape in ((4, 5), (5,), (5, 3), (3,))]
    slopes = gradient(rows, np.eye(3)[codes], layers)  # type: ignore[arg-type]

    def loss() -> float:
        logits = forward(rows, layers)  # type: ignore[arg-type]
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(9), codes]).mean())

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
    start = init_layers(np.array([[0.5, -0.5], [0.25, 1]]), np.zeros(2), 0, 0)
    slopes = gradient(rows, targets, start)
    after = next(train_adamw(rows, targets, start, decay=10.0, epochs=1, seed=0))
    for place, kept in enumerate((0.99, 1, 0.99, 1)):
        assert np.allclose(after[place], start[place] * kept - LEARNING_RATE * np.sign(slopes[place]), atol=1e-6)
