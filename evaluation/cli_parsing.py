"""Lists of numbers and of names on a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import OptionError, unknown

T = TypeVar("T", int, float)


def parse_numbers(option: str, text: str, kind: Callable[[str], T], accepted: str = "numbers") -> tuple[T, ...]:
    """The different numbers of a text, separated by commas; raises OptionError, which says what is accepted."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text!r} not understood; accepted: {accepted} separated by commas") from None
    _check_once(option, text, numbers)
    return numbers


def parse_names(option: str, what: str, text: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """The different names of a text, separated by commas; raises OptionError for one that is not accepted."""
    names = split_list(option, text)
    for name in names:
        if name not in accepted:
            raise unknown(what, name, accepted)
    return names


def split_list(option: str, text: str) -> tuple[str, ...]:
    """The different parts of a text, separated by commas; raises OptionError for one that stands there twice."""
    parts = tuple(part.strip() for part in text.split(","))
    _check_once(option, text, parts)
    return parts


def _check_once(option: str, text: str, found: Sequence[object]) -> None:
    if len(set(found)) < len(found):
        raise OptionError(f"{option} {text!r} names one twice; accepted: each at most once")
