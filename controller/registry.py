"""Add-ons that installed packages register as entry points, tersely's own `research` folders among them.

Forward modifiers come from add-ons only (`tersely.forward_modifiers`).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from ..errors import OptionError, check_known
from .types import ForwardModifier


@cache
def load_add_ons(group: str) -> Mapping[str, Any]:
    """Load what is registered under an entry-point group; what cannot be imported is left out."""
    loaded = {}
    for name, entry in find_entry_points(group).items():
        try:
            loaded[name] = entry.load()
        except (ImportError, AttributeError):
            continue
    return loaded


def find_entry_points(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, without importing them; those whose module does not exist are skipped."""
    return {point.name: point for point in sorted(entry_points(group=group)) if _find_source(point.module) is not None}


def read_help(point: EntryPoint) -> str:
    """The first line of the docstring of what an entry point names, without importing it."""
    path = _find_source(point.module)
    if path is None:
        return point.value
    tree: Any = ast.parse(path.read_text(encoding="utf-8"))
    if point.attr:
        tree = next((node for node in tree.body if getattr(node, "name", None) == point.attr), tree)
    return (ast.get_docstring(tree) or point.value).splitlines()[0]


def _find_source(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except ImportError:  # its package is missing
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def resolve_modifier(modifier: ForwardModifier | str) -> ForwardModifier:
    """A modifier object as it is, or one by name."""
    if not isinstance(modifier, str):
        if not hasattr(modifier, "install"):
            raise OptionError(f"modifier {modifier!r} is a {type(modifier).__name__}; accepted: a name or a modifier")
        return modifier
    add_ons = load_add_ons("tersely.forward_modifiers")
    check_known("modifier", modifier, add_ons)
    return cast(ForwardModifier, add_ons[modifier]())
