"""Text that the controller inserts, and the separator before it."""

from __future__ import annotations

from .markers import Markers

CLOSING_SENTENCE = "Time is short, so I answer now."


def paragraph_separator(tail: str) -> str:
    """What to write before a new paragraph, after a text that ends in `tail`."""
    return "" if tail.endswith("\n\n") or not tail else "\n" if tail.endswith("\n") else "\n\n"


def closing_text(markers: Markers, sentence: str, separator: str) -> str:
    """A closing sentence ("" for none) and everything that ends the thinking."""
    words = f"{separator}{sentence}\n" if sentence else separator
    return f"{words}{markers.close}{markers.close_suffix}{markers.answer_prefix}"
