"""Learnt values that are no networks, in the two files that probes have: read back whole, for their own model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .artifact import ABOUT, NUMBERS, ArtifactError, read_file, written

Value = TypeVar("Value")
Facts = Mapping[str, type | tuple[type, ...]]


@dataclass(frozen=True, slots=True)
class ValueSchema:
    """How one sort of value is written, and how messages speak of it.

    facts: what the JSON says of it, with types, beside format and digests. noun: what it is called; found, find: how
    one comes by it; command: by which command.
    """

    kind: str
    format: int
    facts: Facts
    noun: str
    found: str
    find: str
    command: str

    @property
    def keys(self) -> Facts:
        """All that the JSON holds."""
        return {**self.facts, "format": int, "tersely": str, "sha256": str, "digest": str}


def read(
    form: ValueSchema,
    folder: Path | str,
    fingerprint: str | None,
    model: str,
    build: Callable[[Mapping[str, Any], Mapping[str, Any]], Value],
) -> Value:
    """What `build` makes of facts and arrays, for the model of this fingerprint (`probes.fingerprint`).

    Raises ArtifactError for what is another model's, was changed or cannot be used, or where it cannot be told which
    model it is for.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    place = Path(folder)
    if fingerprint is None:
        raise ArtifactError(f"it cannot be told which model this engine runs, so {place} may be another model's")
    about, numbers = _checked(form, place / ABOUT), read_file(place / NUMBERS)
    if hashlib.sha256(numbers).hexdigest() != about["sha256"]:
        raise ArtifactError(f"{place / NUMBERS} is not the file that {ABOUT} belongs to; save or fetch both again")
    base = about["base"]
    if base.get("fingerprint") != fingerprint:
        raise ArtifactError(
            f"{place} was {form.found} on {base.get('name')} ({str(base.get('fingerprint'))[:12]}) and {model} is "
            f"another one ({fingerprint[:12]}); {form.find} one for {model}: `{form.command}`"
        )
    try:
        return build({name: about[name] for name in form.facts if name != "kind"}, from_bytes(numbers))
    except (SafetensorError, TypeError, ValueError) as error:
        raise ArtifactError(f"{place} holds no {form.noun} that can be used: {error}") from None


def _checked(form: ValueSchema, path: Path) -> dict[str, Any]:
    """The facts, if the file is as it was written."""
    content = read_file(path)
    try:
        about: dict[str, Any] = json.loads(content)
        same = written({name: value for name, value in about.items() if name != "digest"}) == content
    except (ValueError, AttributeError, RecursionError):
        same = False
    if not same:
        raise ArtifactError(f"{path} was changed, or is no probe of tersely; fetch or save it again")
    if about.get("kind") != form.kind:
        raise ArtifactError(f"{path} is a {about.get('kind')} probe; accepted: a {form.noun} of `{form.command}`")
    whole = about.keys() == form.keys.keys() and all(isinstance(about[name], kind) for name, kind in form.keys.items())
    if not whole or about["format"] != form.format:
        raise ArtifactError(f"{path} is not written as this tersely does; accepted: {', '.join(form.keys)}")
    return about
