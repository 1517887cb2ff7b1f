"""The plain data that engines, policies and the controller share; behaviour lives elsewhere.

An engine shows each sampled token of a sequence to that sequence's *watcher* and carries out the *directive* it gets
back. Neither side knows more of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

State: TypeAlias = "NDArray[np.float32]"  # a hidden state, [width]; numpy is not imported for its name

FinishReason = Literal["stop", "length", "stopped", "content_filter"]
"""Why a sequence ended: the model ended it, it was full, its watcher ended it, or a server withheld the rest."""

Prompt = str | Sequence[Mapping[str, Any]]  # a text, or messages with `role` and `content`


class Capability(StrEnum):
    """What an engine, or what a session adds to it, can do."""

    LOGIT_SIGNALS = "signals"  # entropy, top probability and margin of each step
    LOGPROBS = "logprobs"  # the probability of each sampled token, without the other signals
    TOP_LOGPROBS = "top_logprobs"
    """The log-probabilities of the 20 most likely tokens of each step, for `Signals.confidence`."""
    HIDDEN_STATES = "hidden_states"  # hidden states of chosen layers, of prompts and at each step
    RETRACT = "retract"  # a directive may drop the latest token
    KV_ROLLBACK = "kv_rollback"
    """A directive may drop more than the latest token; waiting needs this, and trials within the sequence do."""
    TRIALS = "trials"  # a policy may ask for trial answers that are not sampled
    RAGGED_BATCH = "ragged_batch"  # several forced tokens cost one forward pass
    FORWARD_MODIFIERS = "forward_modifiers"  # the forward pass may be changed for single sequences
    VERIFIER = "verifier"
    HELPER = "helper"
    DRAFT_REVIEW = "draft_review"


SESSION_CAPABILITIES = frozenset({Capability.VERIFIER, Capability.HELPER, Capability.DRAFT_REVIEW})
"""Capabilities that a session brings, not an engine."""


@dataclass(frozen=True, slots=True)
class Directive:
    """What to do after a sampled token: drop the last `retract` tokens of the output, then append `force`."""

    force: tuple[int, ...] = ()
    retract: int = 0
    """How many tokens to drop, the one just sampled included. Dropping only that one is free; more needs
    `Capability.KV_ROLLBACK`."""
    restored: int = 0
    """How many of the dropped tokens stand at the end of `force` again: they are read twice, not lost."""
    trial: bool | None = None
    """True starts (or restarts) a trial, False ends it. Tokens of a trial meet no stopping criterion and are dropped at
    its end."""
    sampled: bool = False  # decode the trial by sampling instead of greedily
    stop: bool = False  # End the sequence after that. A trial in progress must be ended as well.
    wait_for: Future[Any] | None = None
    """Suspend the sequence until this future is done; its watcher's `resume` then decides how it continues."""


KEEP = Directive()  # nothing to do; compared by identity


TOP = 20  # tokens by which `Signals.confidence` is measured, as in DeepConf (arXiv 2508.15260)


@dataclass(frozen=True, slots=True)
class Signals:
    """Facts about the distribution that a token was sampled from, before temperature and truncation."""

    entropy: float  # in nats
    top: float  # probability of the most likely token
    chosen: float
    margin: float = math.nan  # how far `top` lies above the second most likely token
    confidence: float = math.nan  # minus the mean log-probability of the `TOP` most likely tokens, where requested


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What the engine knows about the step that sampled a token."""

    signals: Signals | None  # None unless the request asked for them
    state: Callable[[int], State]
    """Reads the hidden state of a layer that the token was sampled from, which is that of the token before it."""


class Watcher(Protocol):
    """Follows one sequence; pure logic, called once per sampled token."""

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """Process a sampled token and say what to do; `KEEP` (by identity) means nothing.

        `step` is given where the request asked for signals or layers.
        """


@runtime_checkable
class CompletionListener(Watcher, Protocol):
    """A watcher that is also notified when its sequence ends."""

    def on_finish(self, completion: Completion) -> None:
        """Process the completion; called once, in the step that ends the sequence."""


class SuspendableWatcher(Watcher, Protocol):
    """A watcher that may suspend its sequence."""

    def resume(self) -> Directive:
        """Decide how the sequence continues now that its future is done: what to force, or to stop."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling options; None leaves the model's own generation default. `temperature=0` is greedy."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    inverse_cdf: bool = False
    """The transformers engine draws a token from one random number per sequence instead of one per vocabulary entry as
    `generate` does, which on CPUs can cost more than the model. The distribution is the same; a seed gives other
    tokens."""

    def as_dict(self) -> dict[str, float]:
        """The options that are set, by the names that vLLM and OpenAI-compatible servers use."""
        options = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "seed": self.seed}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate: at most `max_new_tokens` output tokens, sampled and forced ones together."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    watcher: Watcher | None = None  # directs the sequence; None leaves it alone
    signals: bool = False  # report the signals of each sampled token, to the watcher as well
    layers: tuple[int, ...] = ()
    """Hidden layers that the watcher may read, counted as by transformers: 0 is the embedding, -1 the output of the
    last norm."""
    temperature: float | None = None  # of this sequence where the batch is sampled, in place of the batch's
    modifiers: tuple[SequenceModifier, ...] = ()
    confidence: bool = False
    """Report `Signals.confidence` with the signals, which needs `Capability.TOP_LOGPROBS`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returns for one request."""

    token_ids: tuple[int, ...]  # the output without the end-of-sequence token
    forced: tuple[bool, ...]
    finish_reason: FinishReason
    dropped: int = 0  # tokens that were generated and taken back, except those of trials
    trial: int = 0
    recomputed: int = 0  # tokens that were read twice: of the prompt, or behind text that was put before them
    signals: tuple[Signals | None, ...] = ()
    """One per token where they were requested, None at forced tokens; otherwise empty."""


TokenSink = Callable[[int, Sequence[int], bool], None]
"""Called as `sink(index, token_ids, forced)` while tokens are generated.

`(index, (), True)` takes back one token announced before; a token dropped as soon as it was sampled is not announced.
"""


class ModelHandle(Protocol):
    """What policies and probes may know about a model and what runs it."""

    @property
    def name(self) -> str:
        """For error messages."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the engine can do."""

    @property
    def hidden_layers(self) -> tuple[int, ...] | None:
        """The layers whose states it can show; None means all of them."""

    def fingerprint(self) -> str | None:
        """Identify the weights, so that probes find their model; see `probes.fingerprint`. None if unknown."""


class Engine(ModelHandle, Protocol):
    """Runs a model over a batch of requests; knows no policy."""

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and output together; None if unknown."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests as one batch, in order."""

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> list[State]:
        """Read prompts and return the hidden state of each one's last token."""

    def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True, slots=True)
class BindContext:
    """What policies and modifiers are bound to."""

    engine: ModelHandle | None  # the engine that runs the model; None where recorded output is replayed
    probes: str | None = None  # folder of `tersely calibrate`; None uses the pretrained probes of the model
    trials: bool = False  # whether something answers trials of recorded output


@dataclass(eq=False, slots=True)
class SequenceModifier:
    """A `ForwardModifier` at work on one sequence, whose forward pass it changes while `active()`."""

    modifier: ForwardModifier
    active: Callable[[], bool]

    def summary(self) -> tuple[str, str] | None:
        """The action and reason for the trace once the sequence has ended; None for nothing."""
        return None


class ForwardModifier(Protocol):
    """Changes the forward pass of single sequences, as steering and early exit do. Not a policy."""

    name: ClassVar[str]

    @property
    def provenance(self) -> frozenset[str]:
        """Hashes of the questions it learned from."""
        return frozenset()

    def bind(self, context: BindContext) -> ForwardModifier:
        """Return the modifier as it is used on this engine; may load what it learned."""

    def describe(self) -> tuple[str, str] | None:
        """The action and reason for the trace when a sequence starts; None for nothing."""
        return None

    def attach(self, boundary: Callable[[], str | None]) -> SequenceModifier:
        """Start on one sequence; `boundary()` is what its latest token ended, None where it does not think."""

    def install(self, model: Any, sequences: Sequence[SequenceModifier | None]) -> AbstractContextManager[Any]:
        """**Changes the model** in the `with`, which gives the engine a hook; a slot of None is left alone."""
