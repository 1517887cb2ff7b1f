"""What a text ends with where no words call it an answer: "24*7 is 168.", "**Yes**", "so C.", "So 54. ✓"

Only for the end of a text whose question is known; far too lenient to decide on while a model thinks.
"""

from __future__ import annotations

from .candidates import Stated, find_candidates
from .questions import Asked

_BIAS = -2.0
_LEAST = 0.15
"""Log-odds above which a value is read."""
_WEIGHTS = {
    "against 0": 0.8, "against 1": -0.2, "against 2": -1.1, "against 3": -1.2, "agrees asked": 2.6,
    "agrees concludes": 1.3, "agrees hedged": 0.7, "aside": -0.9, "asked noun": 0.5, "asks": -0.3, "begins": 0.5,
    "checks 0": -4.8, "checks 0 first": 1.3, "checks 9": 1.0, "conflict degree": -0.3, "conflict measure": -1.0,
    "conflict no money": -5.0, "conflict part": -0.7, "conflict person": -1.7, "conflict unit": -0.7,
    "conflict variable": -6.1, "contains": -0.5, "denied": -1.5, "derived": 0.6, "differs": -1.6, "digits": -0.7,
    "ends": 0.9, "equals": 0.4, "first clean": 2.0, "given": -0.9, "given word": 0.9, "however": 0.4,
    "introduced": 0.4, "kind alternatives": 1.1, "kind date": -0.7, "kind equation": 0.2, "kind formal": -0.2,
    "kind many": -0.9, "kind numeric": -0.4, "kind options": 0.5, "kind other": -0.6, "kind point": -1.0,
    "kind truth": 0.9, "kind wants_words": -0.1, "kind weekday": 0.3, "last number": 0.2, "later against": -0.2,
    "later asks": 1.3, "later checks": 0.8, "later closer": 0.1, "later colon": 0.3, "later conflict": -0.4,
    "later however": 0.3, "later plans": -5.5, "later so": 0.6, "later value": 1.0, "later words": -0.2,
    "left asked": -0.3, "left free": -0.9, "left other": 2.0, "left term": -6.7, "letters": -1.0, "main": 1.1,
    "noun": 0.3, "of compared": 0.2, "of no chance": -1.3, "of qualified": 0.3, "of unqualified": -0.5,
    "other noun": -1.0, "passed 0": 0.5, "passed 1": -0.2, "passed 2": -1.0, "passed 3": -1.0, "plain given": 0.6,
    "plain of unqualified": 0.2, "plans 0": -5.5, "plans 0 done": 0.4, "plans 0 first": 0.2, "plans 1": -0.6,
    "plans 1 done": -2.4, "plans 1 first": 0.4, "plans 2": -6.4, "repeated": 0.2, "result": -0.1, "shared 0": -0.5,
    "shared 1": -0.4, "shared 2": -0.4, "shared 3": -0.4, "so": 0.3, "spelled": 1.3, "stated asked": 0.5,
    "stated concludes": -0.2, "stated hedged": 0.6, "supposed 0": 0.4, "supposed 0 done": -1.1,
    "supposed 0 first": 0.4, "supposed 2": -5.0, "supposed 2 done": -6.5, "supposed 6 done": -0.1,
    "supposed 7": 0.9,
}  # fmt: skip
"""Of the marks of `candidates`, in log-odds; `benchmarks/fit_endings.py` learns them."""


def read_ending(text: str, asked: Asked, stated: Stated | None = None) -> str | None:
    """The likeliest of the values that a text may end with, as it stands there; None where none is likely.

    A value's log-odds are the sum of the weights of its marks: a logistic regression on sentences and recordings.
    """
    best, least = None, _LEAST
    for value, marks in find_candidates(text, asked, stated):
        odds = _BIAS + sum(_WEIGHTS.get(mark, 0.0) for mark in marks)
        if odds > least:
            best, least = value, odds
    return best
