"""A depth shortcut: an adapter by which easy tokens leave a model early, and the gate that says which; kept as a value.

System-1.5 Reasoning (arXiv 2505.18962) trains the model to skip layers in its latent thoughts. Here the model stays
frozen and thinks in words: the adapter learns what the model itself would say, the gate where the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ..artifact import ArtifactError, finite, plain_json, put
from ..value_io import Facts, ValueSchema, read

KIND = "shortcut"
FORMAT = 1
ADAPTER = ("down", "down_bias", "up", "up_bias")
GATE = ("gate_in", "gate_in_bias", "gate_out", "gate_out_bias")
_FACTS: Facts = {
    "kind": str,
    "layer": int,
    "layers": int,
    "threshold": (float, type(None)),
    "base": dict,
    "provenance": dict,
    "metrics": dict,
}
_FORM = ValueSchema(KIND, FORMAT, _FACTS, "shortcut", "learnt", "learn", "tersely train shortcut")

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Shortcut:
    """From the state h after a layer to the one that the last norm and the head are given, of tokens that leave there.

    layer: hidden layer, counted as by transformers, of so many `layers`. With n(h) = h over its root mean square, the
    adapter is h + up silu(down n(h) + down_bias) + up_bias, and the gate's score, a log-odds, gate_out silu(gate_in
    n(h) + gate_in_bias) + gate_out_bias; matrices are [out, in]. threshold: the score from which on a token leaves,
    None where none was found at which what leaves agrees with the model. base: `name` and `fingerprint` of the model.
    provenance, metrics: plain JSON; numbers that are not finite become None.
    Raises ArtifactError for what could not be saved and loaded again.
    """

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
        arrays = {name: np.array(array, np.float32, order="C") for name, array in self.arrays.items()}
        _check_shapes(arrays)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ArtifactError(f"the threshold is {self.threshold}; accepted: a finite score, or none")
        if set(self.base) != {"name", "fingerprint"}:
            raise ArtifactError(f"base is {dict(self.base)}; accepted: `name` and `fingerprint` of the model")
        for array in arrays.values():
            array.flags.writeable = False
        plain = {
            "arrays": arrays,
            "threshold": None if self.threshold is None else float(self.threshold),
            "base": dict(self.base),
            "provenance": plain_json("provenance", dict(self.provenance)),
            "metrics": plain_json("metrics", finite(dict(self.metrics))),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def width(self) -> int:
        """Of the hidden states that it reads."""
        return int(self.arrays["down"].shape[1])

    @property
    def learned_from(self) -> frozenset[str]:
        """Hashes of the questions that it was learnt and chosen on."""
        return frozenset(self.provenance.get("learned_from", ()))

    def chosen(self, threshold: float | None = None) -> float:
        """The threshold to use: the one given, in place of the one that was found.

        Raises OptionError where there is neither, or the one given is not a number.
        """
        found = self.threshold if threshold is None else threshold
        if found is None:
            raise OptionError(
                "no threshold was found at which tokens that leave early agree with the model; accepted: a threshold "
                "of your own, or no shortcut"
            )
        if math.isnan(found):
            raise OptionError("the threshold is not a number; accepted: a score, infinity for no token at all")
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shortcut):
            return NotImplemented
        return _about(self) == _about(other) and _numbers(self) == _numbers(other)

    __hash__ = None  # type: ignore[assignment]


def _check_shapes(arrays: Mapping[str, Array]) -> None:
    """Raise ArtifactError unless an adapter and a gate can be made of these."""
    if set(arrays) != {*ADAPTER, *GATE}:
        raise ArtifactError(f"a shortcut has {', '.join(sorted(arrays))}; accepted: {', '.join((*ADAPTER, *GATE))}")
    down, gate = arrays["down"], arrays["gate_in"]
    if down.ndim != 2 or gate.ndim != 2:
        raise ArtifactError("down and gate_in are no matrices; accepted: [out, width of the hidden states]")
    (inner, width), mid = down.shape, gate.shape[0]
    wanted = {
        "down": (inner, width),
        "down_bias": (inner,),
        "up": (width, inner),
        "up_bias": (width,),
        "gate_in": (mid, width),
        "gate_in_bias": (mid,),
        "gate_out": (mid,),
        "gate_out_bias": (),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ArtifactError(f"{name} has shape {arrays[name].shape}; accepted: {shape}, all numbers finite")


def save_shortcut(shortcut: Shortcut, folder: Path | str) -> None:
    """Write `probe.safetensors` and then `probe.json`, with digests as other probes have them. Raises WriteError."""
    put(folder, _numbers(shortcut), {"format": FORMAT, **_about(shortcut)})


def load_shortcut(folder: Path | str, fingerprint: str | None, model: str = "this model") -> Shortcut:
    """Read a shortcut for the model of this fingerprint (`probes.fingerprint`).

    Raises ArtifactError for one of another model or that was changed, or where it cannot be told which model it is for.
    """
    return read(_FORM, folder, fingerprint, model, lambda facts, arrays: Shortcut(arrays=arrays, **facts))


def _about(shortcut: Shortcut) -> dict[str, Any]:
    return {"kind": KIND, **{name: getattr(shortcut, name) for name in _FACTS if name != "kind"}}


def _numbers(shortcut: Shortcut) -> bytes:
    from safetensors.numpy import save as to_bytes

    return to_bytes(dict(shortcut.arrays))
