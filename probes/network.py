"""The learnt network of a probe as frozen numbers; numpy alone, for it runs while tokens are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError

Array = NDArray[np.float32]
# Standardised inputs are held within this many deviations: some channels of hidden states are far from normal, and a
# row unlike any seen must not make a probability overflow.
CLIP = 8.0
_SHAPES = {
    "mean": "d",
    "gain": "d",
    "w1": "dh",
    "b1": "h",
    "w2": "hc",
    "b2": "c",
    "temperature": "",
    "bias": "c",
}


@dataclass(frozen=True, eq=False, slots=True)
class Network:
    """Standardisation, one hidden layer of rectified units, and the calibration of what comes out; all float32.

    mean, gain: [d]; an input becomes (x - mean) * gain. gain is 1 / deviation, or 0 for a column that was constant.
    w1 [d, h], b1 [h], w2 [h, c], b2 [c]: the two layers.
    temperature [], bias [c]: logits z become z / temperature + bias (vector scaling, Guo et al. 2017).
    Raises OptionError if shapes do not fit each other, numbers are not finite, or the temperature is not positive.
    """

    mean: Array
    gain: Array
    w1: Array
    b1: Array
    w2: Array
    b2: Array
    temperature: Array
    bias: Array

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, letters in _SHAPES.items():
            array = np.array(getattr(self, name), np.float32, order="C")
            if array.ndim != len(letters) or any(
                sizes.setdefault(letter, size) != size for letter, size in zip(letters, array.shape, strict=True)
            ):
                raise OptionError(
                    f"array {name} of a network has shape {array.shape}; accepted: {_wanted(name, sizes)}"
                )
            if not np.isfinite(array).all():
                raise OptionError(f"array {name} of a network holds NaN or infinity; accepted: finite numbers")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not self.temperature > 0:
            raise OptionError(f"the temperature of a network is {self.temperature}; accepted: above 0")

    @property
    def inputs(self) -> int:
        """Columns of what it reads."""
        return len(self.mean)

    @property
    def classes(self) -> int:
        """Columns of what it says."""
        return len(self.b2)

    def logits(self, X: ArrayLike) -> Array:  # noqa: N803 - as scikit-learn calls it
        """Uncalibrated: [n, d] -> [n, classes]; raises OptionError for another width, or if a number is not finite."""
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused or clipped
            rows = np.asarray(X, np.float32)
            if rows.ndim != 2 or rows.shape[1] != len(self.mean):
                raise OptionError(f"features have shape {rows.shape}; accepted: (rows, {self.inputs})")
            if not np.isfinite(rows).all():
                raise OptionError(_not_finite(rows))
            scaled = rows - self.mean
            scaled *= self.gain
        np.minimum(scaled, CLIP, out=scaled)
        np.maximum(scaled, -CLIP, out=scaled)
        hidden = scaled @ self.w1
        hidden += self.b1
        np.maximum(hidden, 0, out=hidden)
        return np.asarray(hidden @ self.w2 + self.b2, np.float32)

    def proba(self, X: ArrayLike) -> Array:  # noqa: N803
        """Calibrated probabilities: [n, d] -> [n, classes]; raises as `logits` does."""
        return softmax(self.logits(X) / self.temperature + self.bias)

    def arrays(self) -> dict[str, Array]:
        """All numbers by name, as `from_arrays` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Network:
        """The network that `arrays` came from; raises OptionError if one is missing, unknown, or not float32."""
        if set(arrays) != set(_SHAPES):
            raise OptionError(f"arrays of a network are {sorted(arrays)}; accepted: {sorted(_SHAPES)}")
        if other := [name for name, array in arrays.items() if array.dtype != np.float32]:
            raise OptionError(f"array {other[0]} of a network is {arrays[other[0]].dtype}; accepted: float32")
        return cls(**arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        mine, theirs = self.arrays(), other.arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True), logits.dtype)


def _wanted(name: str, sizes: Mapping[str, int]) -> str:
    return f"({', '.join(f'{letter} = {sizes[letter]}' if letter in sizes else letter for letter in _SHAPES[name])})"


def _not_finite(rows: Array) -> str:
    row, column = np.argwhere(~np.isfinite(rows))[0]
    return f"feature {column} of row {row} is {rows[row, column]}; accepted: finite numbers within float32"
