"""Numbers as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Callable

from .result import Pair

MINUS, SPACE = "\u2212", "\u00a0"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def format_number(value: float, digits: int = 1) -> str:
    """A number with thousands set apart and a true minus; never a negative zero."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", MINUS)


def format_percent(share: float, digits: int = 1) -> str:
    """A share of 1 in percent."""
    return f"{format_number(100 * share, digits)}{SPACE}%"


def plain(share: float) -> str:
    """A share of 1 in percent, where a sign of percent stands elsewhere."""
    return format_number(100 * share)


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    text = plain(share)
    return text if text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def span(pair: Pair, form: Callable[[float], str] = plain) -> str:
    """An interval by its ends."""
    return f"{form(pair[0])} to {form(pair[1])}"


def tokens(value: float) -> str:
    """A mean number of tokens: with a decimal as long as it can matter."""
    return format_number(value, 1 if abs(value) < 10_000 else 0)


def significant(value: float, digits: int = 3) -> str:
    """A positive number of any size to so many significant digits, in full rather than in powers of ten."""
    if not value:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return format_number(value, decimals)


def prefixed(value: float) -> str:
    """A count to three significant digits with a prefix of the SI."""
    power = min(int(math.log10(value) // 3) if value >= 1 else 0, len(_PREFIXES) - 1)
    return f"{significant(value / 1000**power)}{SPACE}{_PREFIXES[power]}".rstrip(SPACE)


def p_value(value: float) -> str:
    """A p-value; below a thousandth only that it is."""
    return f"<{SPACE}0.001" if value < 0.001 else format_number(value, 3)


def points(share: float) -> str:
    """A share of 1 as points, with the decimals that it has."""
    text = f"{100 * share:.10g}"
    return f"{text}{SPACE}point{'' if text == '1' else 's'}"


def pluralize(n: int, thing: str, things: str = "") -> str:
    """So many of a thing; `things` is its plural where an s does not do."""
    return f"{n:,} {thing if n == 1 else things or thing + 's'}"
