"""What may be asked of a verifier, and the ticket on which its verdict appears."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class AnswerStated:
    """Does the ending of a segment of thinking state an answer? TrimR's p1 (arXiv 2505.17155)."""

    question: str
    ending: str


@dataclass(frozen=True, slots=True)
class AnswersEqual:
    """Are the answers that two endings state the same? TrimR's p2."""

    question: str
    first: str
    second: str


Question = AnswerStated | AnswersEqual


@dataclass(frozen=True, slots=True)
class ReviewCriterion:
    """What a helper has to think of a draft to leave it as it is.

    by "chance": it keeps the draft up to the first token that it gives a chance below `least`. by "grade": it keeps all
    if it grades the draft `least` or better, from 0 to 9, and nothing otherwise.
    """

    least: float
    by: Literal["chance", "grade"] = "chance"


class VerdictFuture:
    """A verdict to come; read by a policy, written once by whoever finds it, from any thread.

    yes: P(yes) / (P(yes) + P(no)), None until it is known or if it never will be. error: why it never will be.
    tokens: what is read for it. patience: seconds after which a verdict no longer counts.
    """

    __slots__ = ("_deadline", "_ended", "_lock", "error", "tokens", "yes")

    def __init__(self, tokens: int = 0, patience: float | None = None) -> None:
        self.tokens = tokens
        self.yes: float | None = None
        self.error: str | None = None
        self._deadline = None if patience is None else time.monotonic() + patience
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether there is a verdict, or the certainty that none will come."""
        if not self._ended.is_set() and self._deadline is not None and time.monotonic() >= self._deadline:
            self.fail("no verdict in time")
        return self._ended.is_set()

    def settle(self, yes: float) -> VerdictFuture:
        """Write the verdict, unless it comes too late."""
        return self._end(yes, None)

    def fail(self, error: str) -> VerdictFuture:
        """Write that there will be none, and why."""
        return self._end(None, error)

    def wait(self) -> None:
        """Sleep until the ticket is done; for what is recorded, never while decoding."""
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        self._ended.wait(left)
        _ = self.done

    def _end(self, yes: float | None, error: str | None) -> VerdictFuture:
        with self._lock:
            if not self._ended.is_set():
                self.yes, self.error = yes, error
                self._ended.set()
        return self


NO_VERDICT = VerdictFuture().fail("nothing was asked")


class Verifier(Protocol):
    """Gives verdicts; `submit` returns at once and never raises for a question."""

    def submit(self, question: Question) -> VerdictFuture:
        """Take a question in."""
        ...

    def close(self) -> None:
        """Free what it holds; questions that are open end without a verdict."""
        ...
