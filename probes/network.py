"""The network of a probe: one hidden layer as frozen arrays, and its training with AdamW.

Plain numpy: predictions run while tokens are decoded, and a deep-learning library takes longer to import than to train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..errors import OptionError, TerselyError


def check_arrays(
    arrays: Mapping[str, Any], shapes: Mapping[str, str], dtype: DTypeLike, error: type[TerselyError] = OptionError
) -> dict[str, NDArray[Any]]:
    """Copy arrays to read-only ones of a type; raises `error` unless all are given, finite and of fitting shapes.

    Shapes have a letter for each dimension and the same letter for equal sizes, such as "dh".
    """
    if set(arrays) != set(shapes):
        raise error(f"arrays are {', '.join(sorted(arrays))}; accepted: {', '.join(shapes)}")
    sizes: dict[str, int] = {}
    checked = {}
    for name, letters in shapes.items():
        array = np.array(arrays[name], dtype, order="C")
        if array.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, array.shape, strict=True)
        ):
            wanted = ", ".join(f"{letter} = {sizes[letter]}" if letter in sizes else letter for letter in letters)
            raise error(f"array {name} has shape {array.shape}; accepted: ({wanted})")
        if not np.isfinite(array).all():
            raise error(f"array {name} holds NaN or infinity; accepted: finite numbers")
        array.flags.writeable = False
        checked[name] = array
    return checked


class ArrayRecord:
    """Base of frozen dataclasses of arrays, see `check_arrays`; equal if all arrays are."""

    __slots__ = ()
    shapes: ClassVar[Mapping[str, str]]
    dtype: ClassVar[DTypeLike]
    error: ClassVar[type[TerselyError]] = OptionError

    def __post_init__(self) -> None:
        for name, array in check_arrays(self.arrays(), self.shapes, self.dtype, self.error).items():
            object.__setattr__(self, name, array)
        self._check()

    def _check(self) -> None:
        """Raise `error` for arrays whose shapes fit but whose values do not."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, which are the arguments of the class."""
        return {name: getattr(self, name) for name in self.shapes}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        mine, theirs = self.arrays(), other.arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]


Array = NDArray[np.float32]
# Standardised inputs are clipped to this many deviations: some channels of hidden states are far from normal, and a
# row unlike any seen in training must not make a probability overflow.
CLIP = 8.0
LEARNING_RATE = 1e-3  # as in DiffAdapt (arXiv 2510.19669)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults
MAX_STEPS, MIN_BATCH = 64, 64  # at most so many steps an epoch, unless batches would be smaller than this


@dataclass(frozen=True, eq=False, slots=True)
class Network(ArrayRecord):
    """Standardisation, a layer of rectified units, and the calibration of the logits; float32. Raises OptionError."""

    shapes: ClassVar[Mapping[str, str]] = {
        "mean": "d",
        "gain": "d",
        "w1": "dh",
        "b1": "h",
        "w2": "hc",
        "b2": "c",
        "temperature": "",
        "bias": "c",
    }
    dtype: ClassVar[DTypeLike] = np.float32
    mean: Array  # [d]; an input becomes (x - mean) * gain
    gain: Array  # [d]; 1 / deviation, or 0 for a column that was constant
    w1: Array  # [d, h]; `b1` is [h], `w2` [h, c] and `b2` [c]
    b1: Array
    w2: Array
    b2: Array
    temperature: Array  # []; logits z become z / temperature + bias (vector scaling, Guo et al. 2017).
    bias: Array  # [c]

    def _check(self) -> None:
        if not self.temperature > 0:
            raise OptionError(f"the temperature of a network is {self.temperature}; accepted: above 0")

    @property
    def inputs(self) -> int:
        return len(self.mean)

    @property
    def classes(self) -> int:
        return len(self.b2)

    def logits(self, X: ArrayLike) -> Array:  # noqa: N803 - as scikit-learn calls it
        """Uncalibrated logits, [n, d] -> [n, classes]; raises OptionError for another width or non-finite numbers."""
        with np.errstate(over="ignore"):  # overflow becomes infinite, and is refused or clipped
            rows = np.asarray(X, np.float32)
            if rows.ndim != 2 or rows.shape[1] != len(self.mean):
                raise OptionError(f"features have shape {rows.shape}; accepted: (rows, {self.inputs})")
            if not np.isfinite(rows).all():
                row, column = np.argwhere(~np.isfinite(rows))[0]
                raise OptionError(
                    f"feature {column} of row {row} is {rows[row, column]}; accepted: finite numbers within float32",
                    code="not_finite",
                )
            scaled = rows - self.mean
            scaled *= self.gain
        np.minimum(scaled, CLIP, out=scaled)
        np.maximum(scaled, -CLIP, out=scaled)
        hidden = scaled @ self.w1
        hidden += self.b1
        np.maximum(hidden, 0, out=hidden)
        return np.asarray(hidden @ self.w2 + self.b2, np.float32)

    def proba(self, X: ArrayLike) -> Array:  # noqa: N803
        """Calibrated probabilities, [n, d] -> [n, classes]; raises as `logits` does."""
        return softmax(self.logits(X) / self.temperature + self.bias)


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True), logits.dtype)


def init_layers(weights: NDArray[np.float64], bias: NDArray[np.float64], hidden: int, seed: int) -> list[Array]:
    """Build [w1, b1, w2, b2] that compute one linear layer [d, classes], [classes] exactly: x = relu(x) - relu(-x).

    Units beyond 2 * classes start at random, with outgoing weights of zero.
    """
    d, classes = weights.shape
    extra = max(0, hidden - 2 * classes)
    random = np.random.default_rng(seed).normal(0, np.sqrt(2 / d), (d, extra))
    identity = np.eye(classes)
    w1 = np.hstack([weights, -weights, random])
    w2 = np.vstack([identity, -identity, np.zeros((extra, classes))])
    return [np.asarray(layer, np.float32) for layer in (w1, np.zeros(w1.shape[1]), w2, bias)]


def forward(inputs: Array, layers: Sequence[Array]) -> Array:
    """Logits [n, classes] of standardised inputs [n, d]."""
    w1, b1, w2, b2 = layers
    return np.asarray(np.maximum(inputs @ w1 + b1, 0) @ w2 + b2)


def gradient(inputs: Array, targets: Array, layers: Sequence[Array]) -> list[Array]:
    """Gradient of the mean cross-entropy by each layer; targets: [n, classes]."""
    w1, b1, w2, b2 = layers
    hidden = np.maximum(inputs @ w1 + b1, 0)
    error = (softmax(hidden @ w2 + b2) - targets) / np.float32(len(inputs))
    back = (error @ w2.T) * (hidden > 0)
    return [inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


def train_adamw(
    inputs: Array, targets: Array, start: Sequence[Array], decay: float, epochs: int, seed: int
) -> Iterator[list[Array]]:
    """Yield the layers, updated in place, after each epoch of AdamW (Loshchilov and Hutter 2019) without bias decay."""
    layers, order, step = [layer.copy() for layer in start], np.random.default_rng(seed), 0
    means, squares = [np.zeros_like(layer) for layer in layers], [np.zeros_like(layer) for layer in layers]
    size = max(MIN_BATCH, -(-len(inputs) // MAX_STEPS))
    for _ in range(epochs):
        shuffled = order.permutation(len(inputs))
        for batch in np.split(shuffled, range(size, len(inputs), size)):
            step += 1
            slopes = gradient(inputs[batch], targets[batch], layers)
            rate, unbiased = LEARNING_RATE / (1 - BETA1**step), 1 - BETA2**step
            for layer, slope, mean, square in zip(layers, slopes, means, squares, strict=True):
                mean += np.float32(1 - BETA1) * (slope - mean)
                square += np.float32(1 - BETA2) * (slope * slope - square)
                if layer.ndim > 1:
                    layer *= np.float32(1 - LEARNING_RATE * decay)
                layer -= np.float32(rate) * mean / (np.sqrt(square / np.float32(unbiased)) + np.float32(EPSILON))
        yield layers
