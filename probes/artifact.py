"""A learnt probe on disk: `probe.safetensors` with all numbers, and `probe.json` that says what they are.

Neither holds code. The JSON file has the digest of the other and of itself, so that what was damaged, cut short or
mixed up is refused. This is no signature: who can write both files can write a probe that loads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, TerselyError
from ..io import WriteError, write
from .network import Network

NUMBERS, ABOUT = "probe.safetensors", "probe.json"
FORMAT = 2
KINDS = ("difficulty", "readiness", "mode")
_FACTS: dict[str, type] = {
    "kind": str,
    "classes": list,
    "layer": int,
    "features": list,
    "base": dict,
    "provenance": dict,
    "metrics": dict,
    "certificates": list,
}
_KEYS = _FACTS | {"format": int, "tersely": str, "sha256": str, "digest": str}


class ArtifactError(TerselyError, ValueError):
    """A probe cannot be saved or loaded: not one, damaged, or another model's."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """A probe as a value.

    kind: one of `KINDS`; classes: names of the network's columns; layer: index of the hidden states that it reads;
    features: names of what it reads beside them; base: `name` and `fingerprint` of the model it was learnt on.
    provenance: what it was made from, such as the hash of the data, task, split, seed and n; metrics, in which numbers
    that are not finite become None; certificates: plain JSON; arrays: further numbers by name, such as tables of tiers.
    Raises ArtifactError for what could not be saved and loaded again.
    """

    kind: str
    network: Network
    classes: tuple[str, ...]
    layer: int
    features: tuple[str, ...]
    base: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    certificates: Sequence[Mapping[str, Any]] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArtifactError(f"a probe's kind is {self.kind!r}; accepted: {', '.join(KINDS)}")
        classes, features = tuple(map(str, self.classes)), tuple(map(str, self.features))
        if len(classes) != self.network.classes or len(set(classes)) < len(classes):
            raise ArtifactError(f"classes are {classes}; accepted: {self.network.classes} different names")
        if set(self.base) != {"name", "fingerprint"} or not all(isinstance(v, str) for v in self.base.values()):
            raise ArtifactError(
                f"base is {dict(self.base)}; accepted: `name` and `fingerprint` of the model, both texts"
            )
        arrays = {name: np.array(array, order="C") for name, array in self.arrays.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and np.isnan(array).any()):
                raise ArtifactError(f"array {name} holds {array.dtype} or NaN; accepted: numbers")
            array.flags.writeable = False
        plain = {
            "classes": classes,
            "features": features,
            "layer": int(self.layer),
            "base": dict(self.base),
            "provenance": plain_json("provenance", dict(self.provenance)),
            "metrics": plain_json("metrics", finite(dict(self.metrics))),
            "certificates": tuple(plain_json("certificates", [dict(c) for c in self.certificates])),
            "arrays": arrays,
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Artifact):
            return NotImplemented
        return _about(self) == _about(other) and _numbers(self) == _numbers(other)

    __hash__ = None  # type: ignore[assignment]


def save(artifact: Artifact, folder: Path | str) -> None:
    """Write both files, the JSON one last: a save that is cut short is refused when loaded. Raises WriteError."""
    put(folder, _numbers(artifact), _about(artifact))


def put(folder: Path | str, numbers: bytes, about: Mapping[str, Any]) -> None:
    """Write numbers and then the facts about them, with the digests that tie them together. Raises WriteError."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{place} cannot be made: {error.strerror}; choose another place") from None
    write(place / NUMBERS, numbers)
    tied = {**about, "sha256": hashlib.sha256(numbers).hexdigest(), "tersely": _own_version()}
    write(place / ABOUT, written(tied))


def load(
    folder: Path | str, *, fingerprint: str | None = None, layer: int | None = None, model: str = "this model"
) -> Artifact:
    """Read a probe; raises ArtifactError unless both files are whole and agree.

    fingerprint: of the model it is to be used on (`probes.fingerprint`), which has to be that it was learnt on; None:
    not checked. layer: the hidden layer it will be given. model: what messages call the model.
    """
    place = Path(folder)
    about, numbers = _checked(place / ABOUT), read_file(place / NUMBERS)
    if hashlib.sha256(numbers).hexdigest() != about["sha256"]:
        raise ArtifactError(
            f"{place / NUMBERS} is not the file that {ABOUT} belongs to: it was changed, or saving was cut short; "
            "save or fetch the probe again"
        )
    found = _built(place, about, numbers)
    base = found.base
    if fingerprint is not None and fingerprint != base["fingerprint"]:
        raise ArtifactError(
            f"{place} was learnt on {base['name']} ({base['fingerprint'][:12]}) and {model} is another one "
            f"({fingerprint[:12]}); use the probe with {base['name']}, or learn one for {model}: `tersely calibrate`"
        )
    if layer is not None and layer != found.layer:
        raise ArtifactError(f"{place} reads hidden layer {found.layer} and would be given {layer}; give it its own")
    return found


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a saved probe, which is checked first, to the Hugging Face hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    load(folder)
    api = HfApi(token=token)
    with _hub(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[NUMBERS, ABOUT],
            revision=revision,
            commit_message="Upload a tersely probe",
        )
    return str(done)


def from_pretrained(
    name_or_path: Path | str,
    *,
    revision: str | None = None,
    token: str | None = None,
    fingerprint: str | None = None,
    layer: int | None = None,
) -> Artifact:
    """Load a probe from a folder, or fetch it from the Hugging Face hub; raises ArtifactError as `load` does."""
    place = Path(name_or_path)
    if not place.is_dir():
        from huggingface_hub import snapshot_download

        with _hub(str(name_or_path)):
            place = Path(
                snapshot_download(str(name_or_path), revision=revision, token=token, allow_patterns=[NUMBERS, ABOUT])
            )
    return load(place, fingerprint=fingerprint, layer=layer)


@contextmanager
def _hub(name: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{name!r} is no folder here, and the hub said: {reason}") from None


def plain_json(what: str, value: Any) -> Any:
    """The value as JSON would bring it back; raises ArtifactError for what it cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=np.generic.item))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{what} cannot be written: {error}; accepted: plain JSON, finite numbers") from None


def finite(value: Any) -> Any:
    """The value with None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value


def _own_version() -> str:
    try:
        return version("tersely")
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"


def _about(artifact: Artifact) -> dict[str, Any]:
    facts = {name: getattr(artifact, name) for name in _FACTS}
    return {"format": FORMAT, **{name: list(v) if isinstance(v, tuple) else v for name, v in facts.items()}}


def _numbers(artifact: Artifact) -> bytes:
    from safetensors.numpy import save as to_bytes

    network = {f"network.{name}": array for name, array in artifact.network.arrays().items()}
    return to_bytes(network | {f"arrays.{name}": array for name, array in artifact.arrays.items()})


def written(about: Mapping[str, Any]) -> bytes:
    """The one way in which these facts are written, with their digest: any other text was changed."""

    def text(facts: Mapping[str, Any]) -> bytes:
        return (json.dumps(facts, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()

    return text({**about, "digest": hashlib.sha256(text(about)).hexdigest()})


def read_file(path: Path) -> bytes:
    """What a file holds; raises ArtifactError."""
    try:
        return path.read_bytes()
    except OSError as error:
        wanted = f"a folder with {NUMBERS} and {ABOUT}, as `save` writes it"
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; accepted: {wanted}") from None


def _checked(path: Path) -> dict[str, Any]:
    content = read_file(path)
    try:
        about = json.loads(content)
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path} is not JSON; it was damaged, or is no probe: fetch or save it again") from None
    if not isinstance(about, dict) or "format" not in about:
        raise ArtifactError(f"{path} does not describe a probe; accepted: what `save` writes")
    if about["format"] != FORMAT:
        raise ArtifactError(f"{path} has format {about['format']!r}; accepted: {FORMAT}. Another tersely wrote it")
    try:
        same = written({name: value for name, value in about.items() if name != "digest"}) == content
    except ValueError:
        same = False
    if not same:
        raise ArtifactError(f"{path} was changed after it was written: its digest is another; fetch or save it again")
    if about.keys() != _KEYS.keys() or not all(isinstance(about[name], kind) for name, kind in _KEYS.items()):
        raise ArtifactError(f"{path} does not describe a probe; accepted: {', '.join(_KEYS)}, and nothing else")
    return about


def _built(place: Path, about: Mapping[str, Any], numbers: bytes) -> Artifact:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        found = from_bytes(numbers)
        parts: dict[str, dict[str, Any]] = {"network": {}, "arrays": {}}
        for name, array in found.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        network = Network.from_arrays(parts["network"])
        return Artifact(network=network, arrays=parts["arrays"], **{name: about[name] for name in _FACTS})
    except (ArtifactError, OptionError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{place} holds no probe that can be used: {error}") from None
