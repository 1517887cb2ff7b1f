"""What clients may set of policies over HTTP: numbers and flags within bounds; nothing names a file or a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import OptionError, shorten, unknown

Bound = tuple[int, int] | tuple[float, float] | type[bool]
"""A whole number or a number between two, ends included, or a flag."""

_TOKENS = (1, 1 << 16)
CLIENT_SETTINGS: Mapping[str, Mapping[str, Bound]] = {
    "budget": {"slack": (0, 1 << 12)},
    "convergence": {"agree": (1, 1000), "stride": _TOKENS},
    "auto_exit": {"agree": (1, 1000)},
    "hint": {
        "alpha": _TOKENS,
        "beta": (0.0, 100.0),
        "longest": _TOKENS,
        "earliest": (0, 1 << 16),
        "limit": (0, 1000),
    },
    "readiness": {"threshold": (0.0, 1.0)},
    "repetition": {"tokens": (30, 1000), "counting": _TOKENS, "window": _TOKENS},
    "trimr": {"agree": (1, 64), "window": (1, 64), "share": (0.0, 1.0), "most": (1, 1000), "floor": (0, 1000)},
}
"""Settings by policy; those of other policies are set where the server is started."""


def check_client_settings(policies: Any) -> None:
    """Check the policies of a control that came as text; raises OptionError.

    What is not a mapping of mappings is left to `RequestControl`.
    """
    if not isinstance(policies, Mapping):
        return
    for policy, settings in policies.items():
        known = CLIENT_SETTINGS.get(policy, {})
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            if name not in known:
                raise unknown(f"setting of policy {shorten(policy)} for requests:", name, known or ("none",))
            _check(f"{policy}.{name}", value, known[name])


def _check(name: str, value: object, bound: Bound) -> None:
    if isinstance(bound, type):
        fits, accepted = isinstance(value, bool), "true or false"
    else:
        low, high = bound
        whole = isinstance(low, int)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        fits = number and low <= value <= high  # type: ignore[operator]
        accepted = f"a {'whole ' if whole else ''}number from {low} to {high}"
    if not fits:
        raise OptionError(f"setting {name} is {shorten(value)}; accepted: {accepted}")
