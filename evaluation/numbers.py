"""Lists of numbers on a command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import OptionError

T = TypeVar("T", int, float)


def numbers_of(option: str, text: str, kind: Callable[[str], T], accepted: str = "numbers") -> tuple[T, ...]:
    """The different numbers of a text, separated by commas; raises OptionError, which says what is accepted."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text!r} not understood; accepted: {accepted} separated by commas") from None
    if len(set(numbers)) < len(numbers):
        raise OptionError(f"{option} {text!r} names one twice; accepted: each at most once")
    return numbers
