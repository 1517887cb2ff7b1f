"""Add-ons that installed packages register as entry points, tersely's own `research` folders among them.

Forward modifiers come from add-ons only (`tersely.forward_modifiers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from ..errors import OptionError, unknown
from .types import ForwardModifier


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


def resolve_modifier(modifier: ForwardModifier | str) -> ForwardModifier:
    """A modifier object as it is, or one by name."""
    if not isinstance(modifier, str):
        if not hasattr(modifier, "install"):
            raise OptionError(f"modifier {modifier!r} is a {type(modifier).__name__}; accepted: a name or a modifier")
        return modifier
    add_ons = load_add_ons("tersely.forward_modifiers")
    if modifier not in add_ons:
        raise unknown("modifier", modifier, add_ons)
    return cast(ForwardModifier, add_ons[modifier]())
