"""What forward modifiers learn: a direction along which right thinking gets shorter, and a shortcut through depth.

Efficiency Steering (arXiv 2506.15647) separates the shortest right answers from the longest; the paper names no layer,
positions or strength. After System-1.5 Reasoning (arXiv 2505.18962), but with a frozen model that thinks in words, an
adapter lets easy tokens leave the model early, and a gate selects them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, TerselyError, check_known
from ..artifact import ArtifactError, StoredValue
from ..network import check_arrays

PLACES = ("ends", "tokens")
MIN_PAIRS = 20  # pairs below which a mean of differences is mostly chance

Array = NDArray[np.float32]


class SteeringError(TerselyError, ValueError, code="no_direction"):
    """The answers do not show a direction."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a prompt and of the thinking of its shortest and its longest correct answer.

    For the place `ends`, both are cut at the end of a thought, after the same number of thoughts.
    """

    prompt: tuple[int, ...]
    short: tuple[int, ...]
    long: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Direction(StoredValue):
    """Unit vectors, one a layer, that point from long thinking to short; raises ArtifactError for others."""

    kinds = ("steering",)
    format = 1
    facts = ("place", "layers", "base", "layer", "strength", "provenance", "metrics")
    noun = "direction"
    command = "tersely steer"
    kind: ClassVar[str] = "steering"
    place: str  # one of `PLACES`, where it was found and is to be added
    layers: tuple[int, ...]  # hidden layers, numbered as in transformers
    vectors: Array  # [layers, width]
    norms: Array  # [layers], mean norm of the hidden states
    base: Mapping[str, str]
    layer: int | None = None  # best layer of a search, with its `strength`; None if the search found nothing useful
    strength: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = check_arrays(self.stored_arrays, {"vectors": "ld", "norms": "l"}, np.float32, ArtifactError)
        lengths, norms = np.linalg.norm(arrays["vectors"], axis=1), arrays["norms"]
        if len(norms) != len(self.layers):
            raise ArtifactError(f"{len(norms)} vectors; accepted: one for each of {len(self.layers)} layers")
        if not ((norms > 0).all() and np.allclose(lengths, 1, atol=1e-3)):
            raise ArtifactError("a direction needs vectors of unit length and norms above 0")
        if (self.layer is None) != (self.strength is None) or (
            self.layer is not None and self.layer not in self.layers
        ):
            got = f"layer is {self.layer} with strength {self.strength}"
            raise ArtifactError(f"{got}; accepted: one of its layers with a strength, or neither")
        if self.place not in PLACES:
            raise ArtifactError(f"a direction's place is {self.place!r}; accepted: {', '.join(PLACES)}")
        self._set(layers=tuple(map(int, self.layers)), **arrays)

    def push(self, layer: int, strength: float) -> Array:
        """The vector to add to a layer's states, [width]: `strength` times their mean norm; raises OptionError."""
        check_known("layer", layer, self.layers)
        if not math.isfinite(strength):
            raise OptionError(f"the strength is {strength}; accepted: a finite number, 0 for none")
        at = self.layers.index(layer)
        return np.asarray(strength * self.norms[at] * self.vectors[at], np.float32)

    def chosen(self, layer: int | None = None, strength: float | None = None) -> tuple[int, float]:
        """Return the given layer and strength, or the stored ones; raises OptionError if there are neither."""
        layer = self.layer if layer is None else layer
        strength = self.strength if strength is None else strength
        if layer is None or strength is None:
            raise OptionError(
                "the search found no useful steering on this model; give a layer and a strength, or do not steer"
            )
        return layer, strength

    @property
    def stored_arrays(self) -> Mapping[str, Array]:
        return {"vectors": self.vectors, "norms": self.norms}


def extract(model: Any, pairs: Sequence[Pair], base: Mapping[str, str], place: str = "ends") -> Direction:
    """Extract the mean difference of hidden states, short minus long, at all layers between the blocks of a model.

    `tokens` takes the mean over thinking tokens, both cut to the same number; `ends` the last token of each. The
    metrics, by layer, are "agreement", the cosine between the directions of two halves of the pairs, and "size", the
    distance between short and long in norms. Raises SteeringError for too few pairs, or pairs that do not differ.
    """
    if len(pairs) < MIN_PAIRS:
        raise SteeringError(
            f"{len(pairs)} questions have a short and a long correct answer; accepted: {MIN_PAIRS} or more; sample "
            "more questions, more answers to each, or easier questions",
            code="too_few_pairs",
        )
    measured = [_compare_states(model, pair, place) for pair in pairs]
    differences, norms = np.stack([d for d, _ in measured]), np.stack([n for _, n in measured]).mean(0)
    mean, halves = differences.mean(0), (differences[::2].mean(0), differences[1::2].mean(0))
    sizes = np.linalg.norm(mean, axis=1)
    if not (sizes > 0).all():
        raise SteeringError(
            "the short and the long answers have the same hidden states; sample more answers", code="equal_pairs"
        )
    cosines = (halves[0] * halves[1]).sum(1) / np.prod([np.linalg.norm(half, axis=1) for half in halves], axis=0)
    metrics = {"agreement": cosines.tolist(), "size": (sizes / norms).tolist()}
    layers = tuple(range(1, len(mean) + 1))
    return Direction(place, layers, mean / sizes[:, None], norms, base, metrics=metrics)


def _compare_states(model: Any, pair: Pair, place: str) -> tuple[Array, Array]:
    """Mean states of the short thinking minus the long, [layers, width], and the mean norm of both, [layers]."""
    import torch

    least = min(len(pair.short), len(pair.long))
    if not least:
        raise SteeringError("a pair has an answer without thinking; accepted: two answers with thinking")
    windows = []
    for thinking in (pair.short, pair.long):
        ids = [*pair.prompt, *(thinking[:least] if place == "tokens" else thinking)]
        with torch.no_grad():
            tensor = torch.tensor([ids], device=model.device)
            states = model.get_decoder()(input_ids=tensor, output_hidden_states=True, use_cache=False).hidden_states
        start = len(pair.prompt) if place == "tokens" else len(ids) - 1
        windows.append(torch.stack([state[0, start:].float() for state in states[1:-1]]))  # [layers, tokens, width]
    short, long = (window.mean(1).cpu().numpy() for window in windows)
    norms = [window.norm(dim=-1).mean(1).cpu().numpy() for window in windows]
    return short - long, (norms[0] + norms[1]) / 2


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


@dataclass(frozen=True, eq=False)
class Shortcut(StoredValue):
    """Maps the state h after a layer to the input of the last norm, for tokens that leave there; raises ArtifactError.

    With n(h) = h over its root mean square, the adapter is h + up silu(down n(h) + down_bias) + up_bias, and the gate's
    score, a log-odds, is gate_out silu(gate_in n(h) + gate_in_bias) + gate_out_bias; matrices are [out, in]. `layer` is
    a hidden layer of `layers`. From the threshold on a token leaves; None if none was found at which they agree.
    """

    kinds = ("shortcut",)
    format = 1
    facts = ("layer", "layers", "threshold", "base", "provenance", "metrics")
    noun = "shortcut"
    command = "tersely train shortcut"
    kind: ClassVar[str] = "shortcut"
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
