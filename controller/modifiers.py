"""Forward modifiers by name; they come from add-ons, registered as entry points `tersely.forward_modifiers`."""

from __future__ import annotations

from typing import cast

from ..errors import OptionError, unknown
from .registry import load_add_ons
from .types import ForwardModifier


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
