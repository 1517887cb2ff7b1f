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

from ...errors import CapabilityError
from ..budgets import Budget
from ..engines.base import Seen, State
from ..thoughts import Thinking
from ..trial import TrialAnswer

Boundary = Literal["token", "sentence", "thought", "close"]
RANK = {"token": 0, "sentence": 1, "thought": 2, "close": 3}


@dataclass(slots=True)
class View:
    """What a policy may look at when it wakes (read only).

    closing_cost: tokens that closing the thinking will force. reply: the answer to the trial that the policy asked for;
    None where there was no room for one, or in shadow mode, which asks nothing.
    """

    thinking: Thinking
    budget: Budget
    closing_cost: int
    seen: Seen | None = None
    reply: TrialAnswer | None = None

    @property
    def tokens(self) -> int:
        """Thinking tokens so far, forced ones included."""
        return len(self.thinking)

    def state(self, layer: int) -> State:
        """The hidden state that the latest token was sampled from, of a policy that needs `hidden`."""
        if self.seen is None:
            raise CapabilityError("no hidden states were asked for; a policy that reads them needs 'hidden'")
        return self.seen.state(layer)


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep until the first boundary of this kind at or after `at` thinking tokens, at the latest at `deadline`.

    "close" is where the model itself ends its thinking; an `Inject` then takes that back and makes it think on.
    """

    at: int = 0
    boundary: Boundary = "thought"
    deadline: int | None = None


@dataclass(frozen=True, slots=True)
class Inject:
    """Put text into the thinking; `after` parts it from what follows."""

    text: str
    reason: str
    after: str = "\n\n"


@dataclass(frozen=True, slots=True)
class Close:
    """End the thinking with a closing sentence; None takes the controller's own, empty closes without words."""

    reason: str
    phrase: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """Ask what the model would answer if it had to stop here; `View.reply` brings it, and its tokens are discarded."""


Action = Inject | Close
Watching = Generator[Wait | Action | Trial, View, None]


class Policy(Protocol):
    """One idea. `name` is unique; `needs` lists engine capabilities beyond plain decoding: `signals`, `hidden`, `crop`
    (trials).

    layers: hidden layers that a policy which needs `hidden` reads. A policy that was fitted to questions says which in
    `learned_from`, their hashes (`tasks.questions.hash_of`); a benchmark then refuses to test it on them. One that must
    know the model it works on has a method `bind(engine)`, which returns the policy that is then used.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def watch(self, view: View) -> Watching:
        """Start watching one row; a fresh generator per row, so a policy object itself holds only settings."""
        ...
