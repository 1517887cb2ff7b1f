"""Answers stated in text: where a thought says what it concludes, and what a final answer amounts to."""

from __future__ import annotations

import re

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


def extract_boxed(text: str) -> str | None:
    r"""Content of the last closed ``\boxed{...}`` (braces may nest), or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip()
    return None


def extract_stated_answer(text: str) -> str | None:
    """The last answer this text states as its conclusion, normalised; None if it concludes nothing."""
    inside = extract_boxed(text)
    if inside:
        return normalize_answer(inside)
    found = _STATED.findall(text)
    return normalize_answer(found[-1]) if found else None


def extract_answer(text: str) -> str:
    """What a final answer amounts to: its boxed part, its stated number, its last number, or all of it."""
    answer = extract_boxed(text) or extract_stated_answer(text)
    if answer:
        return answer
    numbers = _BARE_NUMBER.findall(text)
    return normalize_answer(numbers[-1]) if numbers else text.strip()


def normalize_answer(answer: str) -> str:
    """One spelling for equal answers: no thousands commas, currency, trailing zeros, spaces or final stop."""
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
