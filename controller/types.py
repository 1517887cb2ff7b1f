"""What every engine promises, and the narrow bridge by which a controller steers it.

An engine runs a model and knows no policy. It shows each sampled token of a row to that row's *watcher* and carries
out the *directive* it gets back. That is all the two sides share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..probes.research.shortcut import Shortcut

State: TypeAlias = "NDArray[np.float32]"
"""A hidden state, [width]; numpy is not imported for its name."""

FinishReason = Literal["stop", "length", "stopped"]
"""The model ended the row, it was full, or its watcher ended it."""


class Waitable(Protocol):
    """Something that a row rests for; `wait` returns once it is done, and never raises."""

    done: bool

    def wait(self) -> None:
        """Sleep until it is done."""
        ...


@dataclass(frozen=True, slots=True)
class Directive:
    """What to do after a sampled token: discard the last `drop` tokens of the output, then append `force`.

    `drop` counts the token just sampled; dropping only that one is free, more needs an engine that can crop.
    trial: True begins a trial, or begins it anew; False ends it. A trial asks no stopping criterion, and is dropped at
    its end. It is decoded greedily, or as all else is if it is `drawn`. stop: end the row with that; a trial under way
    has to be ended as well. until: then let the row rest until this is done; its watcher's `resume` says how it goes
    on. Only an engine that can crop lets rows rest.
    """

    force: tuple[int, ...] = ()
    drop: int = 0
    trial: bool | None = None
    drawn: bool = False
    stop: bool = False
    until: Waitable | None = None


KEEP = Directive()


@dataclass(frozen=True, slots=True)
class Signals:
    """Of the distribution that a token was sampled from, as the model gives it, before temperature and cuts.

    entropy in nats; top and chosen are the probabilities of the likeliest and of the sampled token; margin is how far
    top lies above the second likeliest.
    """

    entropy: float
    top: float
    chosen: float
    margin: float = math.nan


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What the engine knows of the step that gave a token.

    state(layer) reads the hidden state that the token was sampled from: that of the token before it.
    """

    signals: Signals | None
    state: Callable[[int], State]


class Watcher(Protocol):
    """Follows one row; pure logic, called once per sampled token."""

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """Take note of a sampled token and say what to do; `KEEP` (by identity) means nothing.

        `seen` is given where the request asks for signals or layers.
        """
        ...


@runtime_checkable
class CompletionListener(Watcher, Protocol):
    """A watcher that is also told what became of its row."""

    def ended(self, done: Completion) -> None:
        """Take note of the end of the row, once, in the step that ends it."""
        ...


class SuspendableWatcher(Watcher, Protocol):
    """A watcher that may let its row rest."""

    def resume(self) -> Directive:
        """Say how the row goes on, now that what it rested for is done: what to force, or to stop."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class SteeringVector:
    """What is added to the hidden states of a row, values [width], as a layer puts them out, while `active()`.

    layer: between the blocks of the model, 1 the first. A chunk of tokens is steered as its row is when it is fed.
    """

    layer: int
    values: State
    active: Callable[[], bool]


@dataclass(eq=False, slots=True)
class EarlyExit:
    """By which shortcut tokens of a row leave the forward early: while `active()`, from a threshold of the score on.

    Of the tokens fed while it was active, the engine counts those that left and those that stayed.
    """

    shortcut: Shortcut
    threshold: float
    active: Callable[[], bool]
    left: int = 0
    stayed: int = 0


@dataclass(frozen=True, slots=True)
class RoutedPrompt:
    """How a prompt goes on: further ids, at least one, who watches, and the row's temperature (None: the batch's).

    apart: the ids are the whole prompt; what was read before was for the choice alone, and is forgotten.
    """

    ids: tuple[int, ...]
    watcher: Watcher | None = None
    temperature: float | None = None
    apart: bool = False

    def after(self, read: tuple[int, ...]) -> tuple[int, ...]:
        """The whole prompt, of which so much was read."""
        return self.ids if self.apart else (*read, *self.ids)


class PromptRouter(Protocol):
    """Finishes a prompt by what the model makes of its beginning.

    layer: which hidden state decides. longest: most tokens that `choose` adds.
    """

    layer: int
    longest: int

    def choose(self, state: State) -> RoutedPrompt:
        """Decide; `state` is that of the prompt's last token."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling options; None leaves the model's own generation default. `temperature=0` is greedy.

    inverse: the transformers engine draws a token by one random number, as far as the chances of all before it come,
    instead of by one for each token of the vocabulary as `generate` does, which on CPUs can cost more than the model.
    Other tokens come of a seed then, by the same chances.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    inverse: bool = False

    def asked(self) -> dict[str, float]:
        """What is not left to the model, by the names that vLLM and servers have for it."""
        options = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "seed": self.seed}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Request:
    """One row: prompt ids in, at most `max_new_tokens` output tokens (sampled and forced), watched or not.

    signals: report those of each sampled token, to the watcher as well. layers: whose hidden states the watcher may
    read, counted as by transformers: 0 is the embedding, -1 what the last norm puts out. opening: goes on with the
    prompt, and brings watcher and temperature; either all requests of a batch have one or none. temperature: of this
    row where the batch is sampled, in place of the batch's.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    watcher: Watcher | None = None
    signals: bool = False
    layers: tuple[int, ...] = ()
    opening: PromptRouter | None = None
    temperature: float | None = None
    steering: SteeringVector | None = None
    leaving: EarlyExit | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """Output ids without the end-of-sequence token, which of them were forced, and how the row ended.

    signals: one per token where they were asked for, None at forced tokens; otherwise empty. dropped: tokens that were
    put out and taken back, those of trials apart: trial. reprefilled: prompt tokens that were read twice.
    """

    token_ids: tuple[int, ...]
    forced: tuple[bool, ...]
    finish_reason: FinishReason
    dropped: int = 0
    trial: int = 0
    reprefilled: int = 0
    signals: tuple[Signals | None, ...] = ()


TokenSink = Callable[[int, Sequence[int], bool], None]
"""Called as `sink(row, token_ids, forced)` while tokens are made.

`(row, (), True)` takes back one token announced before; a token dropped as soon as it was sampled is never announced.
"""


class Engine(Protocol):
    """Runs a model over a batch of requests."""

    name: str
    tokenizer: Any
    capabilities: frozenset[str]
    """Of: `retract` (directives may drop the latest token), `crop` (and more than that; trials, rests), `ragged` (k
    forced tokens cost one forward), `signals`, `chances` (signals without entropy), `hidden` (layers
    and openings; an engine that shows some layers alone lists their numbers in `hidden_layers`), `steer` (steering),
    `shortcut` (leaving)."""
    context_length: int | None

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests as one batch, in order."""
        ...

    def fingerprint(self) -> str | None:
        """By which probes know the model again, see `probes.fingerprint`; None where that cannot be told."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
