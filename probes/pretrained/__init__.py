"""The probes released with tersely, as package data, found by the fingerprint of the model they were made for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent


def released(fingerprint: str, kind: str) -> Path | None:
    """The folder of the probe of a kind (`difficulty`, `readiness`, `mode`) released for a model, or None."""
    return _known().get((fingerprint, kind))


@cache
def _known() -> dict[tuple[str, str], Path]:
    found = {}
    for path in _HERE.glob("*/*/probe.json"):
        base = json.loads(path.read_text(encoding="utf-8"))["base"]
        found[base["fingerprint"], path.parent.name] = path.parent
    return found
