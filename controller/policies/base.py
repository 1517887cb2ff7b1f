"""What a policy is: a generator that waits, looks and asks for actions; pure logic without engine or I/O.

    class OneHint(Policy):
        name = "one-hint"

        def watch(self, view):
            yield Wait(at=128, boundary="sentence")
            yield Inject("Be brief.", reason="128 tokens of thinking")

Nothing of a policy runs between two yields, so a waiting policy costs one integer comparison per token. What it asks
for comes back as the value of its `yield`:

            answer = yield Trial()
            verdict = yield AskVerifier(AnswerStated(view.question, "So it is 5."))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...errors import CapabilityError, OptionError, check_known, shorten
from ..budgets import Budget
from ..text.thoughts import ThinkingState
from ..types import BindContext, Capability, State, StepInfo
from ..verification import Question, ReviewCriterion

Boundary = Literal["token", "sentence", "thought", "close"]
BOUNDARY_RANK = {"token": 0, "sentence": 1, "thought": 2, "close": 3}
PARAGRAPH = "\n\n"
NEVER = 1 << 60
BOUND: dict[str, Any] = {"bound": True}
"""Metadata of dataclass fields that `Policy.bind` fills in; they are not settings."""


class PolicyView:
    """What a policy may look at when it runs; read-only.

    `thinking` has the tokens, thoughts and signals so far, `question` the text of the last user message ("" if
    unknown). Closing the thinking will force `closing_cost` tokens; `prompt_tokens` counts the whole prompt.
    """

    __slots__ = ("_closing", "_step", "budget", "closing_cost", "prompt_tokens", "question", "thinking")

    def __init__(
        self, thinking: ThinkingState, budget: Budget, closing_cost: int, question: str = "", prompt_tokens: int = 0
    ) -> None:
        self.thinking, self.budget, self.closing_cost = thinking, budget, closing_cost
        self.question, self.prompt_tokens = question, prompt_tokens
        self._step: StepInfo | None = None
        self._closing = False

    @property
    def tokens(self) -> int:
        """Thinking tokens so far, forced ones included."""
        return len(self.thinking)

    @property
    def closing(self) -> bool:
        """Whether the model itself is ending its thinking here."""
        return self._closing

    def state(self, layer: int) -> State:
        """The hidden state that the latest token was sampled from; the policy must list the layer."""
        if self._step is None:
            raise CapabilityError("no hidden states were requested; a policy that reads them requires HIDDEN_STATES")
        return self._step.state(layer)


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep until the first boundary of a kind at or after `at` thinking tokens, at the latest at `deadline`."""

    at: int = 0
    boundary: Boundary = "thought"
    """"close" is where the model itself ends its thinking; an `Inject` then makes it continue."""
    deadline: int | None = None
    sentence_at: int | None = None
    """Also wake at the first end of a sentence at or after this many tokens, where thoughts are long."""
    or_close: bool = False
    """Also wake where the model ends its thinking, wherever that is."""
    protected: bool = False
    """Also wake inside code, mathematics or a tool call, where nothing may act but what must."""

    def __post_init__(self) -> None:
        check_known("boundary", str(self.boundary), BOUNDARY_RANK)


@dataclass(frozen=True, slots=True)
class Inject:
    """Put text into the thinking, as a paragraph of its own, or `inline` as it is; followed by `after`."""

    text: str
    reason: str
    after: str = PARAGRAPH
    inline: bool = False
    behind: int = 0
    """How many of the latest tokens then stand behind it, as far as the model wrote them itself. They are dropped and
    read again, which needs `Capability.KV_ROLLBACK`."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the thinking with a closing sentence; None uses the controller's own, "" closes without one."""

    reason: str
    phrase: str | None = None


@dataclass(frozen=True, slots=True)
class Delegate:
    """Let the helper write the next `tokens` tokens of the thinking. Replies with its text, or None.

    The model continues alone without a text, and in shadow mode. Where the helper ends the thinking it is closed.
    """

    tokens: int
    reason: str
    retract: int = 0
    """How many of the latest tokens go first, as far as the model wrote them itself."""
    prefix: str = ""
    """Text to put before the helper's."""
    restart: bool = False
    """Drop everything that the model wrote itself; the helper thinks from the question on, under its own control."""


@dataclass(frozen=True, slots=True)
class ReviewDraft:
    """Let the helper check the latest tokens and rewrite what it rejects. Replies with the text that then stands."""

    prefix: ClassVar[str] = ""
    tokens: int
    """Most tokens that it writes, from the first rejected one on; it writes nothing if it accepts all."""
    reason: str
    latest: int
    """How many tokens it checks, as far as the model wrote them itself."""
    criterion: ReviewCriterion
    one_thought: bool = False
    """Write no further than to the end of a thought."""


@dataclass(frozen=True, slots=True)
class AskHelper:
    """Let the helper answer a message without thinking. Replies with its text or None; the thinking does not get it."""

    prefix: ClassVar[str] = ""
    message: str
    tokens: int
    reason: str
    retract: int = 0  # as in `Delegate`


@dataclass(frozen=True, slots=True)
class TrialPrompt:
    """How a trial asks: `opening` goes into the thinking as it is, and ends inside a box that the model has to fill."""

    opening: str
    tokens: int
    """Longest reply, written greedily."""
    whole: bool = False
    """Read on behind the box, to the reply's last token."""
    closes: bool = False
    """Close the thinking before it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Ask what the model would answer if it had to stop here. Replies with a `TrialAnswer`; its tokens are dropped.

    Replies with None where no trial fits, in shadow mode, and where another policy asks in another way
    at the same time.
    """

    prompt: TrialPrompt | None = None
    """None closes the thinking and begins the answer (`trials.ANSWER_PREFIX`)."""
    retract: int = 0
    """Ask before the latest tokens, as far as the model wrote them itself; they come back unless the reply makes a
    policy close the thinking."""
    sampled: bool = False  # also ask for an answer that is sampled like the rest of the output

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, TrialPrompt | None):
            raise OptionError(
                f"the prompt of a Trial is {shorten(self.prompt)}; accepted: a TrialPrompt (opening, tokens), or None"
            )


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What a trial said."""

    answer: str
    """Normalized, so that equal answers are equal strings."""
    confidence: float
    """Geometric mean probability of its tokens."""
    tokens: int
    sampled: str | None = None
    """The sampled answer in the model's own words, where it was asked for; its tokens are not counted."""
    text: str = ""
    """The whole greedy reply, from the box on."""
    entropy: float = math.nan
    """Of the reply's first token, in nats; NaN where the engine reports none."""


@dataclass(frozen=True, slots=True)
class Note:
    """Add a note to the trace and continue at once."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskVerifier:
    """Ask the verifier. Replies at once with a `Future` of its `Verdict`; decoding never waits for it."""

    question: Question

    def __post_init__(self) -> None:
        if not isinstance(self.question, Question):
            raise OptionError(
                f"the question of AskVerifier is {shorten(self.question)}; accepted: AnswerStated or AnswersEqual"
            )


HelperAction = Delegate | ReviewDraft | AskHelper
"""Actions that suspend the sequence until its helper has answered."""
TextAction = Inject | Close | HelperAction
"""Actions of which one wins where several policies act at the same time."""
Action = Wait | TextAction | Trial | Note | AskVerifier
Watching = Generator[Action, Any, None]


class Policy(ABC):
    """One idea about when and how to act on the thinking of a sequence.

    A policy object holds settings only. The state of one sequence lives in the generator that `watch` returns.
    """

    __slots__ = ()
    name: ClassVar[str]
    """Unique among the policies of a sequence; that of the class if it says none."""
    requires: ClassVar[frozenset[Capability]] = frozenset()
    """What the engine and the session must be able to do."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The hidden layers that the policy reads."""
        return ()

    @property
    def provenance(self) -> frozenset[str]:
        """Hashes of the questions it learned from (`probes.fingerprint.hash_question`); it is not tested on them."""
        return frozenset()

    def bind(self, context: BindContext) -> Policy:
        """Return the policy as it is used on this engine; may load what was learned for the model.

        Without an engine (`context.engine is None`) recorded output is replayed.
        """
        return self

    def end_batch(self) -> str | None:
        """Called when a batch has ended; returns a note for the traces of its sequences, or None."""
        return None

    @abstractmethod
    def watch(self, view: PolicyView) -> Watching:
        """Follow one sequence.

        An exception of the generator disables the policy for this sequence; the trace has it, and a RuntimeWarning. A
        policy that finds its settings unfit for the model raises OptionError before it returns the generator.
        """


def unbound_error(policy: Policy) -> TypeError:
    """Build the error for a policy that is used without having been bound."""
    return TypeError(f"policy {policy.name!r} must be bound to an engine first; a session does that")
