"""Numbers as the page and the charts write them."""

from __future__ import annotations

import math
from collections.abc import Callable

MINUS, SPACE = "\u2212", "\u00a0"
_SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def format_number(value: float, digits: int = 1) -> str:
    """Format a number with thousands separators and a true minus; never a negative zero."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", MINUS)


def to_percent(share: float) -> str:
    """Format a share of 1 in percent, without the sign."""
    return format_number(100 * share)


def format_percent(share: float) -> str:
    """Format a share of 1 in percent, with the sign."""
    return f"{to_percent(share)}{SPACE}%"


def format_difference(share: float) -> str:
    """Format a difference of shares in points, with a plus or minus."""
    text = to_percent(share)
    return text if text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def format_interval(pair: tuple[float, float], form: Callable[[float], str] = to_percent) -> str:
    """Format an interval by its ends."""
    return f"{form(pair[0])} to {form(pair[1])}"


def format_tokens(value: float) -> str:
    """Format a mean number of tokens, with a decimal where it matters."""
    return format_number(value, 1 if abs(value) < 10_000 else 0)


def format_significant(value: float, digits: int = 3) -> str:
    """Format a positive number to significant digits, without powers of ten."""
    if not value:
        return "0"
    return format_number(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def format_si(value: float) -> str:
    """Format a count to three significant digits with an SI prefix."""
    power = min(int(math.log10(value) // 3) if value >= 1 else 0, len(_SI_PREFIXES) - 1)
    return f"{format_significant(value / 1000**power)}{SPACE}{_SI_PREFIXES[power]}".rstrip(SPACE)


def format_p_value(value: float) -> str:
    """Format a p-value; those below a thousandth are not told apart."""
    return f"<{SPACE}0.001" if value < 0.001 else format_number(value, 3)


def format_points(share: float) -> str:
    """Format a share of 1 as percentage points, with the decimals that it has."""
    text = f"{100 * share:.10g}"
    return f"{text}{SPACE}point{'' if text == '1' else 's'}"


def pluralize(n: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun; pass `plural` where an s does not do."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def shorten_label(name: str, length: int = 32) -> str:
    """Shorten a name for a chart, and replace what cannot be printed there."""
    text = "".join(character if character.isprintable() else "·" for character in name)
    return text if len(text) <= length else f"{text[: length - 1]}…"
