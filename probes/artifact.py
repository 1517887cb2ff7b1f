"""A probe on disk: `probe.safetensors` with all arrays, and `probe.json` with the facts about them.

Neither holds code. Digests make damaged, truncated and mismatched files be refused; they are not a signature.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode_arrays
from safetensors.numpy import save as encode_arrays

from ..errors import OptionError, TerselyError
from ..io import make_folder, write
from .network import Network

T = TypeVar("T")
NUMBERS, ABOUT = "probe.safetensors", "probe.json"
KINDS = ("difficulty", "readiness", "mode", "text")


class ArtifactError(TerselyError, ValueError, code="invalid_artifact"):
    """A probe cannot be saved or loaded: not a probe, damaged, or for another model."""


class StoredValue(ABC):
    """Base of dataclasses that are saved as an artifact; they are equal if their files would be."""

    kinds: ClassVar[tuple[str, ...]]  # the accepted values of the fact `kind`
    format: ClassVar[int]
    facts: ClassVar[tuple[str, ...]]  # names of all others in the JSON file, besides the version and the digests
    noun: ClassVar[str]  # what error messages call it; they also name the `command` that makes one
    command: ClassVar[str]
    base: Mapping[str, str]  # `name` and `fingerprint` of the model it was trained on
    provenance: Mapping[str, Any]  # plain JSON, such as the hash of the data, task, split and seed
    metrics: Mapping[str, Any]  # plain JSON; numbers that are not finite become None

    @property
    @abstractmethod
    def stored_arrays(self) -> Mapping[str, NDArray[Any]]:
        """The arrays to save, by name."""

    @property
    def stored_facts(self) -> dict[str, Any]:
        """The facts to save, which are attributes."""
        facts = {name: getattr(self, name) for name in ("kind", *self.facts)}
        return {name: list(fact) if isinstance(fact, tuple) else fact for name, fact in facts.items()}

    @classmethod
    def from_stored(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Build the value from its stored facts and arrays."""
        return cls(**facts, **arrays)

    @classmethod
    def load(cls, folder: Path | str, fingerprint: str | None, model: str = "this model") -> Self:
        """Read what `save` wrote for the model with this fingerprint (`probes.fingerprint`); raises ArtifactError."""
        return cls.read(folder, require_fingerprint(fingerprint, folder), model)

    @classmethod
    def read(cls, folder: Path | str, fingerprint: str | None, model: str = "this model") -> Self:
        """Read a value of the model with this fingerprint (None: any), called `model`; raises ArtifactError."""
        folder = Path(folder)
        facts, content = _read_facts(cls, folder / ABOUT), _read_file(folder / NUMBERS)
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ArtifactError(
                f"{folder / NUMBERS} does not belong to {ABOUT}: it was changed, or saving was interrupted; save or "
                f"download the {cls.noun} again",
                code="damaged_artifact",
            )
        owner, made_for = facts["base"].get("name"), facts["base"].get("fingerprint")
        if fingerprint not in (None, made_for):
            raise ArtifactError(
                f"{folder} was made for {owner} ({str(made_for)[:12]}), and {model} is another model "
                f"({str(fingerprint)[:12]}); use it with {owner}, or make one for {model}: `{cls.command}`",
                code="wrong_model",
            )
        try:
            return cls.from_stored({name: facts[name] for name in cls.facts}, decode_arrays(content))
        except (ArtifactError, OptionError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder} does not hold a usable {cls.noun}: {error}") from None

    @property
    def learned_from(self) -> frozenset[str]:
        """Hashes of the questions that it was trained and tuned on."""
        return frozenset(self.provenance.get("learned_from", ()))

    def _set(self, **values: Any) -> None:
        """Set attributes, and the facts of all artifacts to what JSON would return; raises ArtifactError."""
        if set(self.base) != {"name", "fingerprint"} or not all(isinstance(fact, str) for fact in self.base.values()):
            raise ArtifactError(
                f"base is {dict(self.base)}; accepted: `name` and `fingerprint` of the model, both strings"
            )
        values["base"] = dict(self.base)
        values["provenance"] = to_json("provenance", dict(self.provenance))
        values["metrics"] = to_json("metrics", dict(self.metrics), nonfinite=True)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.stored_facts == other.stored_facts and _encode_arrays(self) == _encode_arrays(other)

    __hash__ = None  # type: ignore[assignment]


def _encode_arrays(value: StoredValue) -> bytes:
    return encode_arrays(dict(value.stored_arrays))


def save(value: StoredValue, folder: Path | str) -> None:
    """Write the arrays and then the facts, without which an interrupted save is refused; raises WriteError."""
    folder = Path(folder)
    make_folder(folder)
    content = _encode_arrays(value)
    write(folder / NUMBERS, content)
    facts = {"format": value.format, "sha256": hashlib.sha256(content).hexdigest(), "tersely": version("tersely")}
    write(folder / ABOUT, _encode_facts({**value.stored_facts, **facts}))


def require_fingerprint(fingerprint: str | None, folder: Path | str) -> str:
    """Return the fingerprint of a model; raises ArtifactError if there is none to compare with."""
    if fingerprint is None:
        raise ArtifactError(
            f"this engine does not say which model it runs, so {folder} may belong to another model; use an engine "
            "that can read the weights",
            code="unknown_model",
        )
    return fingerprint


def to_json(name: str, value: T, *, nonfinite: bool = False) -> T:
    """Convert a value to what JSON would return, None for what is not finite if `nonfinite`; raises ArtifactError."""
    try:
        text = json.dumps(value, allow_nan=nonfinite, default=np.generic.item)
        plain: T = json.loads(text, parse_constant=lambda constant: None)
        return plain
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{name} cannot be written: {error}; accepted: plain JSON, finite numbers") from None


def _encode_facts(facts: Mapping[str, Any]) -> bytes:
    """Encode facts with their digest, in the only accepted spelling: any other text was changed."""

    def encode(values: Mapping[str, Any]) -> bytes:
        return (json.dumps(values, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()

    return encode({**facts, "digest": hashlib.sha256(encode(facts)).hexdigest()})


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}; accepted: a folder with {NUMBERS} and {ABOUT}",
            code="unreadable_artifact",
        ) from None


def _read_facts(value: type[StoredValue], path: Path) -> dict[str, Any]:
    """Read the JSON file and check that it is unchanged and of this value."""
    content, again = _read_file(path), f"save or download the {value.noun} again"
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path} is not valid JSON; {again}", code="damaged_artifact") from None
    if not isinstance(facts, dict) or "format" not in facts:
        raise ArtifactError(f"{path} does not describe a {value.noun}; use a folder of `{value.command}`")
    if (kind := facts.get("kind")) not in value.kinds:
        accepted = ", ".join(value.kinds)
        raise ArtifactError(f"{path} is of kind {kind!r}; accepted: {accepted} (`{value.command}`)", code="wrong_kind")
    if facts["format"] != value.format:
        raise ArtifactError(
            f"{path} has format {facts['format']!r}; accepted: {value.format}. Another version of tersely wrote it",
            code="wrong_format",
        )
    try:
        unchanged = _encode_facts({name: fact for name, fact in facts.items() if name != "digest"}) == content
    except ValueError:
        unchanged = False
    if not unchanged:
        raise ArtifactError(f"{path} was changed after it was written; {again}", code="damaged_artifact")
    keys = {*value.facts, "kind", "format", "tersely", "sha256", "digest"}
    if facts.keys() != keys:
        raise ArtifactError(f"{path} does not describe a {value.noun}; accepted keys: {', '.join(keys)}")
    return facts


@dataclass(frozen=True, eq=False)
class Artifact(StoredValue):
    """A probe as a value; raises ArtifactError for what could not be saved and loaded again."""

    kinds = KINDS
    format = 2
    facts = ("kind", "classes", "layer", "features", "base", "provenance", "metrics", "certificates")
    noun = "probe"
    command = "tersely calibrate"
    kind: str  # one of `KINDS`
    network: Network
    classes: tuple[str, ...]  # names of the network's outputs
    layer: int  # index of the hidden states that it reads
    features: tuple[str, ...]  # names of further inputs
    base: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    certificates: Sequence[Mapping[str, Any]] = ()  # plain JSON
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # further ones, such as a table of tiers

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArtifactError(f"a probe's kind is {self.kind!r}; accepted: {', '.join(KINDS)}", code="wrong_kind")
        classes, features = tuple(map(str, self.classes)), tuple(map(str, self.features))
        if len(classes) != self.network.classes or len(set(classes)) < len(classes):
            raise ArtifactError(f"classes are {classes}; accepted: {self.network.classes} different names")
        arrays = {name: np.array(array, order="C") for name, array in self.arrays.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and np.isnan(array).any()):
                raise ArtifactError(f"array {name} holds {array.dtype} or NaN; accepted: numbers")
            array.flags.writeable = False
        self._set(
            classes=classes,
            features=features,
            layer=int(self.layer),
            certificates=tuple(to_json("certificates", [dict(c) for c in self.certificates])),
            arrays=arrays,
        )

    @property
    def stored_arrays(self) -> dict[str, NDArray[Any]]:
        network = {f"network.{name}": array for name, array in self.network.arrays().items()}
        return network | {f"arrays.{name}": array for name, array in self.arrays.items()}

    @classmethod
    def from_stored(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        parts: dict[str, dict[str, Any]] = {"network": {}, "arrays": {}}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        return cls(network=Network(**parts["network"]), arrays=parts["arrays"], **facts)


def load(
    folder: Path | str, *, fingerprint: str | None = None, layer: int | None = None, kind: str | None = None
) -> Artifact:
    """Read a probe; raises ArtifactError unless its files fit each other, and the given model, layer and kind."""
    artifact = Artifact.read(folder, fingerprint)
    if kind is not None and artifact.kind != kind:
        raise ArtifactError(f"{folder} is a {artifact.kind} probe; accepted: a {kind} probe", code="wrong_kind")
    if layer is not None and layer != artifact.layer:
        raise ArtifactError(
            f"{folder} reads hidden layer {artifact.layer}, not {layer}; use a probe of layer {layer}",
            code="wrong_layer",
        )
    return artifact
