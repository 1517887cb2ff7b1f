"""What a growing thinking has stated, and what speaks for each answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .answers import Finality, Statement, find_statements, parse_value
from .cues import LANGUAGES
from .sentences import read_question

_RECONSIDERS = re.compile(
    "|".join(pattern for language in LANGUAGES for pattern in language.reconsiders), re.IGNORECASE
)


@dataclass(slots=True)
class Claim:
    """One answer with what speaks for it.

    Attributes:
        derivations: how often the model arrived at it. A statement counts if the model reconsidered since the one
            before it; a restatement does not.
        answered: how many statements call it the answer.
        agreeing: how many statements in a row say the same, up to the last one.
    """

    answer: str
    derivations: int = 0
    answered: int = 0
    agreeing: int = 0
    at: int = -1  # how often the model had reconsidered when it was stated last


class AnswerEvidence:
    """Reads a growing thinking piece by piece; each piece is read once."""

    def __init__(self, question: str = "") -> None:
        self._asked = read_question(question)
        self._claims: dict[str, Claim] = {}
        self._last: Claim | None = None
        self._reconsidered = 0

    def read(self, text: str) -> tuple[Claim, Finality] | None:
        """Read the next sentences; return the claim stated last in them, and how finally, or None."""
        latest: tuple[Claim, Finality] | None = None
        at = 0
        for statement in find_statements(text, self._asked):
            self._reconsidered += len(_RECONSIDERS.findall(text, at, statement.end))
            at = statement.end
            latest = self._take(statement), statement.finality
        self._reconsidered += len(_RECONSIDERS.findall(text, at))
        return latest

    def _take(self, statement: Statement) -> Claim:
        number = None if statement.answer.isdigit() else parse_value(statement.answer)
        key = statement.answer if number is None else f"{number}{'%' * ('%' in statement.answer)}"
        claim = self._claims.setdefault(key, Claim(statement.answer))
        if self._reconsidered > claim.at:
            claim.derivations += 1
            claim.at = self._reconsidered
        claim.agreeing = claim.agreeing + 1 if claim is self._last else 1
        claim.answered += statement.finality is Finality.ANSWERS
        self._last = claim
        return claim
