"""Questions to a verifier, verdicts as futures, and the verifier that decides by rules."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .text.answers import answers_equal, extract_stated_answer

if TYPE_CHECKING:
    from ..probes.io import TextProbe


@dataclass(frozen=True, slots=True)
class AnswerStated:
    """Does the end of a segment of thinking state an answer? TrimR's p1 (arXiv 2505.17155)."""

    question: str
    ending: str


@dataclass(frozen=True, slots=True)
class AnswersEqual:
    """Are the answers that the ends of two segments state the same? TrimR's p2."""

    question: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class AnswerFinal:
    """Is the value that the thinking has just stated final, by a text probe that also reads a model's states?"""

    question: str
    thinking: str
    features: tuple[float, ...]  # of the text, see `probes.rule.TEXT_FEATURES`
    probe: TextProbe
    sequence: int = 0  # tells sequences of one question apart, so that each is read once


Question = AnswerStated | AnswersEqual | AnswerFinal


class VerdictFuture(Future[float]):
    """The verdict to come: P(yes) / (P(yes) + P(no)); `tokens` is what the verifier reads for it."""

    def __init__(self, tokens: int = 0) -> None:
        super().__init__()
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class ReviewCriterion:
    """When a helper leaves a draft as it is."""

    at_least: float
    by: Literal["probability", "grade"] = "probability"
    """"probability": keep the draft up to the first token that the helper gives a lower probability. "grade": keep all
    of it if the helper grades it that high, from 0 to 9, else nothing."""
    temperature: float = 1.0  # of the probabilities: those of softmax(logits / temperature)


class NoVerdictError(Exception):
    """A verifier cannot answer a question."""


class Verifier(Protocol):
    """Answers questions; `submit` returns at once and never raises for a question."""

    @property
    def timeout(self) -> float | None:
        """Seconds after which a verdict no longer counts; None waits for ever."""

    def submit(self, question: Question) -> VerdictFuture:
        """Take a question."""

    def close(self) -> None:
        """Free what it holds; open questions end without a verdict."""


def get_verdict(future: VerdictFuture) -> float | None:
    """The probability of a yes; None while it has no verdict, and if it never gets one."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()


def settle(future: Future[Any], outcome: Any) -> None:
    """Set a future's result or exception, unless it has been cancelled or settled meanwhile."""
    with suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def format_error(error: BaseException) -> str:
    """An exception on one line, for a trace."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class PendingQuestions:
    """The questions of one sequence: submitted to a verifier, with what they cost."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self._asked: list[VerdictFuture] = []
        self._open: list[tuple[VerdictFuture, float]] = []  # with the time at which each is late

    @property
    def tokens(self) -> int:
        """What the verifier reads for all questions so far."""
        return sum(future.tokens for future in self._asked)

    def ask(self, question: Question) -> VerdictFuture:
        """Submit a question; what `submit` raises becomes the future's exception."""
        try:
            future = self.verifier.submit(question)
        except Exception as error:  # a verifier may be anybody's code
            future = VerdictFuture()
            future.set_exception(error)
        timeout = self.verifier.timeout
        self._asked.append(future)
        self._open.append((future, math.inf if timeout is None else time.monotonic() + timeout))
        return future

    def collect_errors(self) -> list[str]:
        """Give up late questions; return the reasons of those that ended without a verdict since the last call."""
        errors = []
        for future, deadline in self._open:
            if time.monotonic() >= deadline:
                future.cancel()
            if future.cancelled():
                errors.append("no verdict in time")
            elif future.done() and (error := future.exception()) is not None:
                errors.append(str(error) if isinstance(error, NoVerdictError) else format_error(error))
        self._open = [(future, deadline) for future, deadline in self._open if not future.done()]
        return errors

    def wait(self) -> None:
        """Block until all questions have ended; for replays, never while decoding."""
        for future, deadline in self._open:
            wait([future], None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()))
            future.cancel()


class RuleVerifier:
    """Decides what rules can decide and asks `fallback` the rest; without one the rest counts as no."""

    def __init__(self, fallback: Verifier | None = None) -> None:
        self.fallback = fallback

    @property
    def timeout(self) -> float | None:
        return None if self.fallback is None else self.fallback.timeout

    def submit(self, question: Question) -> VerdictFuture:
        verdict = decide_by_rules(question)
        if verdict is None and self.fallback is not None:
            return self.fallback.submit(question)
        future = VerdictFuture()
        if isinstance(question, AnswerFinal):
            future.set_exception(NoVerdictError(f"the text probe needs {question.probe.base['name']} as the verifier"))
        else:
            future.set_result(float(verdict or False))
        return future

    def close(self) -> None:
        if self.fallback is not None:
            self.fallback.close()


def decide_by_rules(question: Question) -> bool | None:
    """Decide a question by rules; None where they cannot."""
    if isinstance(question, AnswerFinal):
        return None
    if isinstance(question, AnswerStated):
        return True if extract_stated_answer(question.ending) is not None else None
    first, second = extract_stated_answer(question.first), extract_stated_answer(question.second)
    if first is None or second is None:
        return None
    return answers_equal(first, second)
