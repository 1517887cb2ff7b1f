"""Reading answers: what a thought states as its conclusion, what a final answer says, and when two are equal."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"[-+−]?\$?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?%?"
_STATED = re.compile(
    r"(?:\b(?:answer|result|total|value|sum|product)\s+(?:is|equals|=|:|must be|would be|should be)|"
    r"\b(?:so|thus|therefore|hence)[, ]+(?:i|we)\s+(?:get|have|find)|"
    r"\b(?:that|this|which)\s+(?:makes|gives|yields|leaves))"
    rf"\s*:?\s*(?:exactly |just |still )?[*_]*\$?({_NUMBER})",
    re.IGNORECASE,
)
_BARE_NUMBER = re.compile(_NUMBER)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d*)?")  # other commas separate: 3,5 is not 35
_VALUE = re.compile(r"(-?\d*\.?\d+)(?:/(-?\d*\.?\d+))?(%?)")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?[\d.]+)\}\{(-?[\d.]+)\}")


def find_closing_brace(text: str) -> int | None:
    """Index of the brace that closes one opened before the text; None if it stays open."""
    depth = 1
    for index, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return index
    return None


def extract_boxed(text: str) -> str | None:
    r"""Content of the last closed ``\boxed{...}`` (braces may nest), or None."""
    _, found, rest = text.rpartition("\\boxed{")
    end = find_closing_brace(rest) if found else None
    return None if end is None else rest[:end].strip()


def extract_stated_answer(text: str) -> str | None:
    """The last answer that a text states as its conclusion, normalized; None if it states none."""
    inside = extract_boxed(text)
    if inside:
        return normalize_answer(inside)
    found = _STATED.findall(text)
    return normalize_answer(found[-1]) if found else None


def extract_answer(text: str) -> str:
    """The answer in a final reply: its boxed part, its stated number, its last number, or all of it."""
    answer = extract_boxed(text) or extract_stated_answer(text)
    if answer:
        return answer
    numbers = _BARE_NUMBER.findall(text)
    return normalize_answer(numbers[-1]) if numbers else text.strip()


def normalize_answer(answer: str) -> str:
    """Spell an answer without thousands commas, currency, trailing zeros, extra spaces or a final stop."""
    text = answer.strip().strip("$ ").rstrip(".").replace("−", "-").replace("\\!", "").replace("\\,", "")
    plain = text.replace("$", "").lstrip("+")
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    if re.fullmatch(r"-?\d+\.\d*", plain):
        plain = plain.rstrip("0").rstrip(".")
    if re.fullmatch(r"-?\d+(?:\.\d+)?", plain):
        sign, digits = ("-", plain[1:]) if plain.startswith("-") else ("", plain)
        whole, _, part = digits.partition(".")
        return sign + (whole.lstrip("0") or "0") + (f".{part}" if part else "")
    return " ".join(text.split())


def answers_equal(first: str, second: str) -> bool | None:
    """Whether two answers are equal; None where their spellings differ and they are not both numbers."""
    first, second = normalize_answer(first), normalize_answer(second)
    if first == second:
        return True
    one, other = parse_value(first), parse_value(second)
    if one is None or other is None or ("%" in first) != ("%" in second):
        return None
    return one == other


def parse_value(answer: str) -> Fraction | None:
    """The number that an answer spells (12, -0.5, 1/2, 50% or a LaTeX fraction), or None."""
    found = _VALUE.fullmatch(_FRACTION.sub(r"\1\2/\3", answer.replace("\\%", "%").replace(" ", "")))
    if found is None or Fraction(found[2] or 1) == 0:
        return None
    return Fraction(found[1]) / Fraction(found[2] or 1) / (100 if found[3] else 1)
