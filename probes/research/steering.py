"""A direction in the hidden states along which right thinking gets shorter: found, kept and read as a value.

Efficiency Steering (arXiv 2506.15647): one direction in the residual stream parts the shortest right answers to
questions from the longest. The paper names no layer, positions or size; those here are ours. Two places are known:
`tokens`, all that is thought, nearest to what the paper tells, and `ends`, the ends of thoughts, where it is decided
whether to think on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, TerselyError
from ..artifact import ArtifactError, finite, plain_json, put
from ..value_io import Facts, ValueSchema, read

KIND = "steering"
PLACES = ("ends", "tokens")
FORMAT = 1
FEWEST = 20
"""Pairs below which a mean of differences is mostly chance."""
_FACTS: Facts = {
    "kind": str,
    "place": str,
    "layers": list,
    "base": dict,
    "layer": (int, type(None)),
    "strength": (float, type(None)),
    "provenance": dict,
    "metrics": dict,
}
_FORM = ValueSchema(KIND, FORMAT, _FACTS, "direction", "found", "find", "tersely steer")

Array = NDArray[np.float32]


class SteeringError(TerselyError, ValueError):
    """No direction can be found in what there is."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The shortest and the longest right answer to one question: ids of the prompt, and of the thinking of each.

    For the place `ends`, both thinkings are cut at the end of a thought, after as many thoughts.
    """

    prompt: tuple[int, ...]
    short: tuple[int, ...]
    long: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Direction:
    """Unit vectors, one a layer, that point from long thinking to short.

    place: one of `PLACES`, where it was found and is to be added. layers: hidden layers, counted as by transformers;
    vectors [layers, width]; norms [layers]: the mean norm of hidden states there. base: `name` and `fingerprint` of the
    model. layer, strength: what a search found to be of use, None where it found nothing. provenance, metrics: plain
    JSON; numbers that are not finite become None.
    Raises ArtifactError for what could not be saved and loaded again.
    """

    place: str
    layers: tuple[int, ...]
    vectors: Array
    norms: Array
    base: Mapping[str, str]
    layer: int | None = None
    strength: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vectors, norms = (np.array(array, np.float32, order="C") for array in (self.vectors, self.norms))
        if vectors.ndim != 2 or norms.shape != (len(self.layers),) or len(vectors) != len(self.layers):
            raise ArtifactError(
                f"vectors have shape {vectors.shape} and norms {norms.shape}; accepted: a row and a number for each of "
                f"{len(self.layers)} layers"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.isfinite(norms).all() and (norms > 0).all() and np.allclose(lengths, 1, atol=1e-3)):
            raise ArtifactError("a direction holds vectors of unit length and norms above 0, all of them finite")
        if (self.layer is None) != (self.strength is None) or (
            self.layer is not None and self.layer not in self.layers
        ):
            got = f"layer is {self.layer} with strength {self.strength}"
            raise ArtifactError(f"{got}; accepted: a layer of its own with a strength, or neither")
        if self.place not in PLACES:
            raise ArtifactError(f"a direction's place is {self.place!r}; accepted: {', '.join(PLACES)}")
        if set(self.base) != {"name", "fingerprint"}:
            raise ArtifactError(f"base is {dict(self.base)}; accepted: `name` and `fingerprint` of the model")
        vectors.flags.writeable = norms.flags.writeable = False
        plain = {
            "layers": tuple(map(int, self.layers)),
            "vectors": vectors,
            "norms": norms,
            "base": dict(self.base),
            "provenance": plain_json("provenance", dict(self.provenance)),
            "metrics": plain_json("metrics", finite(dict(self.metrics))),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def push(self, layer: int, strength: float) -> Array:
        """What is added to the hidden states of a layer, [width]: `strength` times their mean norm, along the vector.

        Raises OptionError for a layer that the direction does not have, or a strength that is not finite.
        """
        if layer not in self.layers:
            raise OptionError(f"the direction has no layer {layer}; accepted: {', '.join(map(str, self.layers))}")
        if not math.isfinite(strength):
            raise OptionError(f"the strength is {strength}; accepted: a finite number, 0 for none")
        at = self.layers.index(layer)
        return np.asarray(strength * self.norms[at] * self.vectors[at], np.float32)

    def chosen(self, layer: int | None = None, strength: float | None = None) -> tuple[int, float]:
        """The layer and the strength to steer with: those given, in place of those that a search found to be of use.

        Raises OptionError where there are neither.
        """
        found = self.layer if layer is None else layer, self.strength if strength is None else strength
        if found[0] is None or found[1] is None:
            raise OptionError(
                "the search found no steering that is of use on this model; accepted: a layer and a strength of your "
                "own, or no steering"
            )
        return found[0], found[1]

    @property
    def learned_from(self) -> frozenset[str]:
        """Hashes of the questions that it was found and chosen on."""
        return frozenset(self.provenance.get("learned_from", ()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Direction):
            return NotImplemented
        return _about(self) == _about(other) and _numbers(self) == _numbers(other)

    __hash__ = None  # type: ignore[assignment]


def extract(model: Any, pairs: Sequence[Pair], base: Mapping[str, str], place: str = "ends") -> Direction:
    """The mean difference of hidden states, short minus long, at all layers between the blocks of a model.

    `tokens` takes the mean over thinking tokens, both thinkings cut to as many, or the direction would tell how far a
    thinking has got; `ends` takes the last token of each. The metrics, by layer: "agreement", the cosine between the
    directions of every other pair, near 0 where they are chance, and "size", how far apart the two are, in norms.
    Raises SteeringError for too few pairs, or pairs that do not differ.
    """
    if len(pairs) < FEWEST:
        raise SteeringError(
            f"{len(pairs)} questions have a short and a long right answer; accepted: {FEWEST} or more; sample more "
            "questions, more answers to each, or easier questions"
        )
    found = [_differences(model, pair, place) for pair in pairs]
    differences, norms = np.stack([d for d, _ in found]), np.stack([n for _, n in found]).mean(0)
    mean, halves = differences.mean(0), (differences[::2].mean(0), differences[1::2].mean(0))
    sizes = np.linalg.norm(mean, axis=1)
    if not (sizes > 0).all():
        raise SteeringError(
            "the short and the long thinkings are alike as far as they are compared; sample more answers"
        )
    cosines = (halves[0] * halves[1]).sum(1) / np.prod([np.linalg.norm(half, axis=1) for half in halves], axis=0)
    metrics = {"agreement": cosines.tolist(), "size": (sizes / norms).tolist()}
    layers = tuple(range(1, len(mean) + 1))
    return Direction(place, layers, mean / sizes[:, None], norms, base, metrics=metrics)


def _differences(model: Any, pair: Pair, place: str) -> tuple[Array, Array]:
    """Mean states of the short thinking minus those of the long, [layers, width], and the mean norm of both, [layers].

    What the last block puts out is left out: transformers gives it after the last norm only.
    """
    import torch

    least = min(len(pair.short), len(pair.long))
    if not least:
        raise SteeringError("a pair has an answer without thinking; accepted: two answers that were thought about")
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    windows = []
    for thinking in (pair.short, pair.long):
        ids = [*pair.prompt, *(thinking[:least] if place == "tokens" else thinking)]
        with torch.no_grad():
            tensor = torch.tensor([ids], device=model.device)
            states = decoder(input_ids=tensor, output_hidden_states=True, use_cache=False).hidden_states
        start = len(pair.prompt) if place == "tokens" else len(ids) - 1
        windows.append(torch.stack([state[0, start:].float() for state in states[1:-1]]))  # [layers, tokens, width]
    short, long = (window.mean(1).cpu().numpy() for window in windows)
    norms = [window.norm(dim=-1).mean(1).cpu().numpy() for window in windows]
    return short - long, (norms[0] + norms[1]) / 2


def save_direction(direction: Direction, folder: Path | str) -> None:
    """Write `probe.safetensors` and then `probe.json`, with digests as other probes have them. Raises WriteError."""
    put(folder, _numbers(direction), {"format": FORMAT, **_about(direction)})


def load_direction(folder: Path | str, fingerprint: str | None, model: str = "this model") -> Direction:
    """Read a direction for the model of this fingerprint (`probes.fingerprint`).

    Raises ArtifactError for one of another model or that was changed, or where it cannot be told which model it is for.
    """

    def build(facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> Direction:
        made: dict[str, Any] = {**facts, "layers": tuple(facts["layers"]), **arrays}
        return Direction(**made)

    return read(_FORM, folder, fingerprint, model, build)


def _about(direction: Direction) -> dict[str, Any]:
    facts = {name: getattr(direction, name) for name in _FACTS if name != "kind"}
    return {"kind": KIND, **facts, "layers": list(direction.layers)}


def _numbers(direction: Direction) -> bytes:
    from safetensors.numpy import save as to_bytes

    return to_bytes({"vectors": direction.vectors, "norms": direction.norms})
