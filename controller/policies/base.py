"""The contract of a policy: a generator that sleeps, looks and bids; pure logic without engine or I/O.

    def watch(self, view):
        view = yield Wait(at=128, boundary="sentence")
        yield Inject("Be brief.", reason="128 tokens thought")

Between two yields nothing of a policy runs, so a sleeping policy costs one integer comparison per token. A policy that
asks for a verdict is told at once where it will appear, sleeps on, and looks there when it next wakes:

        view = yield Ask(Exists(view.question, "So it is 5."))
        ticket = view.ticket
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from ...errors import CapabilityError
from ..budgets import Budget
from ..text.thoughts import ThinkingState
from ..types import State, StepInfo
from ..verification import NO_VERDICT, Question, ReviewCriterion, VerdictFuture

if TYPE_CHECKING:
    from ..trial_answers import TrialAnswer

Boundary = Literal["token", "sentence", "thought", "close"]
RANK = {"token": 0, "sentence": 1, "thought": 2, "close": 3}
PARAGRAPH = "\n\n"


@dataclass(slots=True)
class PolicyView:
    """What a policy may look at when it wakes (read only).

    closing_cost: tokens that closing the thinking will force. question: what was asked, "" if that is not known;
    prompt_tokens: of the whole prompt. reply: the answer to the trial that the policy asked for; None where there was
    no room for one, or in shadow mode, which tries nothing. ticket: of the question that the policy asked last. helped:
    what the helper said to what the policy last handed to it, None if nothing. closing: the model itself ends its
    thinking here.
    """

    thinking: ThinkingState
    budget: Budget
    closing_cost: int
    question: str = ""
    prompt_tokens: int = 0
    seen: StepInfo | None = None
    reply: TrialAnswer | None = None
    helped: str | None = None
    closing: bool = False
    ticket: VerdictFuture = NO_VERDICT

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

    "close" is where the model itself ends its thinking; an `Inject` then takes that back and makes it think on. closes:
    wake there too, wherever that is.
    """

    at: int = 0
    boundary: Boundary = "thought"
    deadline: int | None = None
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Inject:
    """Put text into the thinking; `after` parts it from what follows."""

    text: str
    reason: str
    after: str = PARAGRAPH


@dataclass(frozen=True, slots=True)
class Close:
    """End the thinking with a closing sentence; None takes the controller's own, empty closes without words."""

    reason: str
    phrase: str | None = None


@dataclass(frozen=True, slots=True)
class Delegate:
    """Let the helper write the next `tokens` tokens of the thinking; `PolicyView.helped` brings its text.

    take_back: so many of the latest tokens go first, as far as the model wrote them itself. lead: what stands before
    the helper's text. anew: all goes that the model wrote itself, and the helper thinks from the question on, under its
    own control. Where the helper ends the thinking it is closed. The model goes on alone if there is no text, and in
    shadow mode.
    """

    tokens: int
    reason: str
    take_back: int = 0
    lead: str = ""
    anew: bool = False


@dataclass(frozen=True, slots=True)
class ReviewDraft:
    """Let the helper look over the latest tokens, as far as the model wrote them, and rewrite what it does not keep.

    latest: how many. tokens: most that it writes, from the first that it does not keep on; nothing if it keeps all.
    thought: no further than to the end of a thought. `PolicyView.helped` is what stands in their place then. Else as
    `Delegate`.
    """

    lead: ClassVar[str] = ""
    tokens: int
    reason: str
    latest: int
    review: ReviewCriterion
    thought: bool = False


@dataclass(frozen=True, slots=True)
class AskHelper:
    """Let the helper answer a message, without thinking; `PolicyView.helped` brings its reply, the thinking does not
    get it.

    take_back: as for `Delegate`.
    """

    lead: ClassVar[str] = ""
    message: str
    tokens: int
    reason: str
    take_back: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """Ask what the model would answer if it had to stop here; `PolicyView.reply` brings it, and its tokens are
    discarded.

    drawn: ask for an answer that is sampled as all else is, beside the greedy one.
    """

    drawn: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Put something into the trace and go on at once; nothing is done."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskVerifier:
    """Ask the verifier and go on at once; the verdict will appear on `PolicyView.ticket`, and decoding never waits
    for it.
    """

    question: Question


HelperAction = Delegate | ReviewDraft | AskHelper
"""What a row rests for until its helper has done it."""
Action = Inject | Close | HelperAction
Move = Wait | Action | Trial | Note | AskVerifier
Watching = Generator[Move, PolicyView, None]


class Policy(Protocol):
    """One idea. `name` is unique; `needs` lists what goes beyond plain decoding: of the engine `signals`, `hidden`,
    `retract` (to act on the model's close) and `crop` (trials, delegations), of the controller `verifier`, `helper` and
    `review`, a helper that reviews.

    layers: hidden layers that a policy which needs `hidden` reads. A policy that was fitted to questions says which in
    `learned_from`, their hashes (`tasks.questions.hash_question`); a benchmark then refuses to test it on them. One
    that must
    know the model it works on has a method `bind(engine)`, which returns the policy that is then used, and, where it
    can do without, a `fallback`, which is used where there is no engine to ask. One that adds to hidden states, and
    needs `steer`, says so as `Steer` does, one by which tokens leave early, and needs `shortcut`, as `DepthShortcut`.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def watch(self, view: PolicyView) -> Watching:
        """Start watching one row; a fresh generator per row, so a policy object itself holds only settings.

        What the generator raises leaves the policy out of this row and is in its trace. A policy that finds here that
        its settings do not fit the model raises OptionError before it returns one.
        """
        ...
