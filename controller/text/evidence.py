"""What a growing thinking has stated, and what speaks for each answer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .answers import Finality, Statement, ends_in_answer, find_statements, parse_value
from .cues import either
from .questions import read_question

_RECONSIDERS = re.compile(either("reconsiders"))
_WORD = re.compile(r"[^\W\d_]{2,}(?:[ '’-][^\W\d_]+)*")
_CONFIRMS = re.compile(either("confirms"))


@dataclass(slots=True)
class Claim:
    """One answer with what speaks for it."""

    answer: str
    # how often the model arrived at it. A statement counts if the model reconsidered since the one before it; a
    # restatement does not
    derivations: int = 0
    confirmed: int = 0  # how often the model has said that something is right or fits, since it was first stated
    answered: int = 0  # how many statements call it the answer
    agreeing: int = 0  # how many statements in a row say the same, up to the last one
    # the same, where intermediate results do not count, only statements about the goal of the question
    insisting: int = 0
    contested: bool = False  # whether any other value has been called the answer
    at: int = -1  # how often the model had reconsidered when it was stated last
    since: int = 0  # how often it had confirmed anything when it was stated first

    def features(self, tokens: int, finality: Finality = Finality.ANSWERS) -> tuple[float, ...]:
        """What a text probe reads (`TEXT_FEATURES`), after so many tokens: nothing of the value or the task."""
        counts = (self.derivations, self.confirmed, self.answered, self.agreeing, self.insisting, self.at + 1, tokens)
        return (*map(math.log1p, counts), float(self.contested), float(finality))


class AnswerEvidence:
    """Reads a growing thinking piece by piece; each piece is read once."""

    def __init__(self, question: str = "") -> None:
        self.asked = read_question(question)
        self._waiting: list[str] = []  # pieces that are not read yet
        self._claims: dict[str, Claim] = {}
        self._last: Claim | None = None
        self._last_asked: Claim | None = None
        self._called = 0  # how many values have been called the answer
        self._reconsidered = self._confirmed = 0

    def find_answer(self, text: str) -> tuple[Claim, Finality] | None:
        """Append the next sentences; return the claim stated last in them if they call it the answer.

        Only then does it count what was stated before, so pieces wait for that and much of a thinking is never read.
        """
        self._waiting.append(text)
        if not ends_in_answer(text, self.asked):
            return None
        for piece in self._waiting:
            latest = self.read(piece)
        self._waiting.clear()
        return latest

    def read(self, text: str) -> tuple[Claim, Finality] | None:
        """Read the next sentences at once; return the claim stated last in them, and how finally, or None."""
        latest: tuple[Claim, Finality] | None = None
        at, lower = 0, text.lower()
        for statement in find_statements(text, self.asked):
            self._count(lower, at, statement.end)
            at = statement.end
            latest = self._take(statement), statement.finality
        self._count(lower, at, len(lower))
        if latest is not None:
            claim = latest[0]
            claim.confirmed = self._confirmed - claim.since
            claim.contested = self._called > (claim.answered > 0)
        return latest

    def _count(self, lower: str, start: int, end: int) -> None:
        """Count the cues in a part of a text in small letters."""
        self._reconsidered += len(_RECONSIDERS.findall(lower, start, end))
        if self._last is not None:  # before anything is stated, nothing can be confirmed
            self._confirmed += len(_CONFIRMS.findall(lower, start, end))

    def _take(self, statement: Statement) -> Claim:
        number = None if statement.answer.isdigit() else parse_value(statement.answer)
        key = statement.answer
        if number is not None:
            key = f"{number}{'%' * ('%' in key)}"
        elif _WORD.fullmatch(key):
            key = key.lower()
        claim = self._claims.setdefault(key, Claim(statement.answer, since=self._confirmed))
        if self._reconsidered > claim.at:
            claim.derivations += 1
            claim.at = self._reconsidered
        claim.agreeing = claim.agreeing + 1 if claim is self._last else 1
        if statement.finality >= Finality.ASKED:
            claim.insisting = claim.insisting + 1 if claim is self._last_asked else 1
            self._last_asked = claim
        if statement.finality is Finality.ANSWERS:
            self._called += claim.answered == 0
            claim.answered += 1
        self._last = claim
        return claim
