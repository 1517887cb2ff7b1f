"""A depth shortcut: an adapter that lets easy tokens leave a model early, and the gate that selects them.

After System-1.5 Reasoning (arXiv 2505.18962), but the model stays frozen and thinks in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ..artifact import ArtifactError, StoredValue
from ..network import check_arrays

KIND = "shortcut"
_SHAPES = {
    "down": "iw",
    "down_bias": "i",
    "up": "wi",
    "up_bias": "w",
    "gate_in": "mw",
    "gate_in_bias": "m",
    "gate_out": "m",
    "gate_out_bias": "",
}
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Shortcut(StoredValue):
    """Maps the state h after a layer to the input of the last norm, for tokens that leave there; raises ArtifactError.

    With n(h) = h over its root mean square, the adapter is h + up silu(down n(h) + down_bias) + up_bias, and the gate's
    score, a log-odds, is gate_out silu(gate_in n(h) + gate_in_bias) + gate_out_bias; matrices are [out, in]. `layer` is
    a hidden layer of `layers`. From the threshold on a token leaves; None if none was found at which they agree.
    """

    kinds = (KIND,)
    format = 1
    facts = ("layer", "layers", "threshold", "base", "provenance", "metrics")
    noun = "shortcut"
    command = "tersely train shortcut"
    kind: ClassVar[str] = KIND
    layer: int
    layers: int
    arrays: Mapping[str, Array]
    base: Mapping[str, str]
    threshold: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.layer < self.layers:
            raise ArtifactError(f"layer is {self.layer} of {self.layers}; accepted: 1 to {self.layers - 1}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ArtifactError(f"the threshold is {self.threshold}; accepted: a finite score, or none")
        self._set(
            arrays=check_arrays(self.arrays, _SHAPES, np.float32, ArtifactError),
            threshold=None if self.threshold is None else float(self.threshold),
        )

    @property
    def width(self) -> int:
        return int(self.arrays["down"].shape[1])

    def chosen(self, threshold: float | None = None) -> float:
        """Return the given threshold, or the stored one; raises OptionError for NaN, or if there is neither."""
        chosen = self.threshold if threshold is None else threshold
        if chosen is None:
            raise OptionError(
                "no threshold is known at which early tokens agree with the model; give one, or run without the "
                "shortcut"
            )
        if math.isnan(chosen):
            raise OptionError("the threshold is NaN; accepted: a score, or infinity for no early exit")
        return chosen

    @property
    def stored_arrays(self) -> Mapping[str, Array]:
        return self.arrays

    @classmethod
    def from_stored(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """See `StoredValue`."""
        return cls(arrays=arrays, **facts)
