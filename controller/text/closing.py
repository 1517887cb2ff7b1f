"""The words that a controller puts into a text, and what parts them from what stands there."""

from __future__ import annotations

from ..policies.base import Close, Inject
from .markers import Markers

CLOSING = "Time is short, so I answer now."


def paragraph_separator(tail: str) -> str:
    """What parts a new paragraph from a text that ends so."""
    return "" if tail.endswith("\n\n") or not tail else "\n" if tail.endswith("\n") else "\n\n"


def closing_text(markers: Markers, phrase: str, lead: str) -> str:
    """A closing sentence, "" for none, and all that ends the thinking."""
    words = f"{lead}{phrase}\n" if phrase else lead
    return f"{words}{markers.close}{markers.after}{markers.answering}"


def action_text(action: Inject | Close, markers: Markers, closing: str, tail: str) -> str:
    """What an action writes after a text that ends so; closing: the sentence of a `Close` that has none."""
    lead = paragraph_separator(tail)
    if isinstance(action, Inject):
        return f"{lead}{action.text}{action.after}"
    return closing_text(markers, closing if action.phrase is None else action.phrase, lead)
