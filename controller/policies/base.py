"""The contract of a policy: a generator that sleeps, looks and bids; pure logic without engine or I/O.

    def watch(self, view):
        view = yield Wait(at=128, boundary="sentence")
        yield Inject("Be brief.", reason="128 tokens thought")

Between two yields nothing of a policy runs, so a sleeping policy costs one integer comparison per token.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from ..budgets import Budget
from ..thoughts import Thinking

Boundary = Literal["token", "sentence", "thought"]
RANK = {"token": 0, "sentence": 1, "thought": 2}


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may look at when it wakes (read only)."""

    thinking: Thinking
    budget: Budget
    closing_cost: int
    """Tokens that closing the thinking will force."""

    @property
    def tokens(self) -> int:
        """Thinking tokens so far, forced ones included."""
        return len(self.thinking)


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep until the first boundary of this kind at or after `at` thinking tokens, at the latest at `deadline`."""

    at: int = 0
    boundary: Boundary = "thought"
    deadline: int | None = None


@dataclass(frozen=True, slots=True)
class Inject:
    """Put text into the thinking."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """End the thinking with a closing sentence; None takes the controller's own, empty closes without words."""

    reason: str
    phrase: str | None = None


Action = Inject | Close
Watching = Generator[Wait | Action, View, None]


class Policy(Protocol):
    """One idea. `name` is unique; `needs` lists engine capabilities beyond plain decoding.

    A policy that was fitted to questions says which in `learned_from`, their hashes (`tasks.questions.hash_of`); a
    benchmark then refuses to test it on them.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def watch(self, view: View) -> Watching:
        """Start watching one row; a fresh generator per row, so a policy object itself holds only settings."""
        ...
