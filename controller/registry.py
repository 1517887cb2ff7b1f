"""Add-ons that installed packages register as entry points, tersely's own `research` folders among them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any


@cache
def load_add_ons(group: str) -> Mapping[str, Any]:
    """What is registered under an entry-point group; what cannot be imported is left out."""
    loaded = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            loaded[entry.name] = entry.load()
        except (ImportError, AttributeError):
            continue
    return loaded
