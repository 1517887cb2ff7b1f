"""Retaining heads on disk: `heads.safetensors` has all numbers, `heads.json` says whose they are; no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from ...errors import ModelError
from ...io import WriteError, write
from .retaining import RetainingHeads

NUMBERS, ABOUT = "heads.safetensors", "heads.json"
FORMAT = 1
_KEYS = {"format": int, "shape": list, "base": dict, "metrics": dict, "sha256": str}


def save_heads(
    heads: RetainingHeads, folder: Path | str, base: Mapping[str, str], metrics: Mapping[str, Any] | None = None
) -> None:
    """Write both files, the JSON one last. base: `name` and `fingerprint` of the model; metrics: plain JSON.

    Raises WriteError where they cannot be written.
    """
    place = Path(folder)
    numbers = to_bytes({name: tensor.contiguous() for name, tensor in heads.state_dict().items()})
    about = {
        "format": FORMAT,
        "shape": list(heads.shape),
        "base": {name: base[name] for name in ("name", "fingerprint")},
        "metrics": dict(metrics or {}),
        "sha256": hashlib.sha256(numbers).hexdigest(),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{place} cannot be made: {error.strerror}; choose another place") from None
    write(place / NUMBERS, numbers)
    write(place / ABOUT, json.dumps(about, indent=1) + "\n")


def load_heads(folder: Path | str, fingerprint: str) -> RetainingHeads:
    """Read heads for the model of this fingerprint (`probes.fingerprint`).

    Raises ModelError for those of another model, and for files that are not there, were changed or hold no heads.
    """
    place = Path(folder)
    try:
        about, numbers = json.loads((place / ABOUT).read_bytes()), (place / NUMBERS).read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{place} holds no retaining heads ({error}); accepted: what save_heads wrote") from None
    whole = isinstance(about, dict) and all(isinstance(about.get(name), kind) for name, kind in _KEYS.items())
    if not whole or about["format"] != FORMAT:
        raise ModelError(f"{place / ABOUT} is not written as this tersely does; accepted: {', '.join(_KEYS)}")
    if hashlib.sha256(numbers).hexdigest() != about["sha256"]:
        raise ModelError(f"{place / NUMBERS} is not the file that {ABOUT} belongs to; save or fetch both again")
    base = about["base"]
    if base.get("fingerprint") != fingerprint:
        raise ModelError(
            f"{place} was learnt on {base.get('name')} ({str(base.get('fingerprint'))[:12]}) and this model is another "
            f"one ({fingerprint[:12]}); learn heads for it"
        )
    try:
        heads = RetainingHeads(*map(int, about["shape"]))
        heads.load_state_dict(from_bytes(numbers))
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{place} holds no heads that can be used: {reason}; save or fetch them again") from None
    return heads.eval().requires_grad_(False)
