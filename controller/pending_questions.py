"""The questions of one row: handed on to a verifier, their cost, and what became of those without a verdict."""

from __future__ import annotations

from .verification import Question, VerdictFuture, Verifier


class PendingQuestions:
    """Keeps the tickets of one row; whatever the verifier raises becomes a ticket with an error."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.open: list[VerdictFuture] = []
        self._tickets: list[VerdictFuture] = []

    @property
    def tokens(self) -> int:
        """What is read for all questions so far."""
        return sum(ticket.tokens for ticket in self._tickets)

    def ask(self, question: Question) -> VerdictFuture:
        """Hand a question on."""
        try:
            ticket = self.verifier.submit(question)
        except Exception as error:  # a verifier is anybody's code
            ticket = VerdictFuture().fail(format_error(error))
        self._tickets.append(ticket)
        self.open.append(ticket)
        return ticket

    def troubles(self) -> list[str]:
        """The errors of questions that have ended since the last call."""
        ended = [ticket for ticket in self.open if ticket.done]
        self.open = [ticket for ticket in self.open if ticket not in ended]
        return [ticket.error for ticket in ended if ticket.error is not None]

    def wait(self) -> None:
        """Sleep until all questions have ended; for replays."""
        for ticket in self.open:
            ticket.wait()


def format_error(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
