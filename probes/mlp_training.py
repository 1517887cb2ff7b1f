"""Two layers from logistic regression onwards: a start that says the same, and AdamW; plain numpy, no autograd to load.

At this size a step costs less than the bookkeeping of a deep-learning library, whose import alone takes longer than
most probes take to train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .network import softmax

Floats = NDArray[np.float32]
RATE = 1e-3  # DiffAdapt's
FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's own
STEPS, BATCH = 64, 64  # at most so many steps an epoch, unless batches would be smaller than this


def get_layers(weights: NDArray[np.float64], bias: NDArray[np.float64], hidden: int, seed: int) -> list[Floats]:
    """[w1, b1, w2, b2] that say what one layer [d, classes], [classes] says, for x = relu(x) - relu(-x).

    Units beyond the 2 * classes that this takes are random, and not listened to yet.
    """
    d, classes = weights.shape
    further = max(0, hidden - 2 * classes)
    drawn = np.random.default_rng(seed).normal(0, np.sqrt(2 / d), (d, further))
    same = np.eye(classes)
    w1, w2 = np.hstack([weights, -weights, drawn]), np.vstack([same, -same, np.zeros((further, classes))])
    return [np.asarray(layer, np.float32) for layer in (w1, np.zeros(w1.shape[1]), w2, bias)]


def forward(inputs: Floats, layers: Sequence[Floats]) -> Floats:
    """Logits [n, classes] of standardised inputs [n, d]."""
    w1, b1, w2, b2 = layers
    return np.asarray(np.maximum(inputs @ w1 + b1, 0) @ w2 + b2)


def gradient(inputs: Floats, targets: Floats, weights: Floats, layers: Sequence[Floats]) -> list[Floats]:
    """Of the cross-entropy summed with these weights [n], by each layer; targets: [n, classes]."""
    w1, b1, w2, b2 = layers
    hidden = np.maximum(inputs @ w1 + b1, 0)
    error = (softmax(hidden @ w2 + b2) - targets) * weights[:, None]
    back = (error @ w2.T) * (hidden > 0)
    return [inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


def descent(
    inputs: Floats, targets: Floats, weights: Floats, start: Sequence[Floats], decay: float, epochs: int, seed: int
) -> Iterator[list[Floats]]:
    """The layers after each epoch of AdamW (Loshchilov and Hutter 2019), biases not decayed; they change in place."""
    layers, order, step = [layer.copy() for layer in start], np.random.default_rng(seed), 0
    means, squares = [np.zeros_like(layer) for layer in layers], [np.zeros_like(layer) for layer in layers]
    relative = weights / weights.mean()
    size = max(BATCH, -(-len(inputs) // STEPS))
    for _ in range(epochs):
        shuffled = order.permutation(len(inputs))
        for batch in np.split(shuffled, range(size, len(inputs), size)):
            step += 1
            slopes = gradient(inputs[batch], targets[batch], relative[batch] / np.float32(len(batch)), layers)
            rate, unbiased = RATE / (1 - FIRST**step), 1 - SECOND**step
            for layer, slope, mean, square in zip(layers, slopes, means, squares, strict=True):
                mean += np.float32(1 - FIRST) * (slope - mean)
                square += np.float32(1 - SECOND) * (slope * slope - square)
                if layer.ndim > 1:
                    layer *= np.float32(1 - RATE * decay)
                layer -= np.float32(rate) * mean / (np.sqrt(square / np.float32(unbiased)) + np.float32(TINY))
        yield layers
