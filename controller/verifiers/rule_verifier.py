"""Verdicts by rules: what an ending states as its answer, and whether two such answers are equal. They cost nothing."""

from __future__ import annotations

import re
from fractions import Fraction

from ..text.answers import extract_stated_answer, normalize_answer
from ..verification import AnswerStated, Question, VerdictFuture, Verifier

_VALUE = re.compile(r"(-?\d*\.?\d+)(?:/(-?\d*\.?\d+))?(%?)")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?[\d.]+)\}\{(-?[\d.]+)\}")


class RuleVerifier:
    """Decides what rules decide; `beyond` is asked the rest, None takes that for a no. Implements `Verifier`."""

    def __init__(self, beyond: Verifier | None = None) -> None:
        self.beyond = beyond

    def submit(self, question: Question) -> VerdictFuture:
        """See `Verifier.submit`."""
        verdict = decide_by_rules(question)
        if verdict is None and self.beyond is not None:
            return self.beyond.submit(question)
        return VerdictFuture().settle(float(verdict or False))

    def close(self) -> None:
        """See `Verifier.close`."""
        if self.beyond is not None:
            self.beyond.close()


def decide_by_rules(question: Question) -> bool | None:
    """The verdict of the rules; None where they cannot tell."""
    if isinstance(question, AnswerStated):
        return True if extract_stated_answer(question.ending) is not None else None
    first, second = extract_stated_answer(question.first), extract_stated_answer(question.second)
    if first is None or second is None:
        return None
    return answers_equal(first, second)


def answers_equal(first: str, second: str) -> bool | None:
    """Whether two answers are the same; None where they are spelled differently and are not both numbers."""
    first, second = normalize_answer(first), normalize_answer(second)
    if first == second:
        return True
    one, other = parse_value(first), parse_value(second)
    if one is None or other is None or ("%" in first) != ("%" in second):
        return None
    return one == other


def parse_value(answer: str) -> Fraction | None:
    """The number that an answer spells: 12, -0.5, 1/2, 50% or a LaTeX fraction of numbers; None for anything else."""
    found = _VALUE.fullmatch(_FRACTION.sub(r"\1\2/\3", answer.replace("\\%", "%").replace(" ", "")))
    if found is None or Fraction(found[2] or 1) == 0:
        return None
    return Fraction(found[1]) / Fraction(found[2] or 1) / (100 if found[3] else 1)
