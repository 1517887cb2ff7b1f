"""What every engine promises, and the narrow bridge by which a controller steers it.

An engine runs a model and knows no policy. It shows each sampled token of a row to that row's *watcher* and carries
out the *directive* it gets back. That is all the two sides share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Directive:
    """What to do after a sampled token: discard the last `drop` tokens of the output, then append `force`.

    `drop` counts the token just sampled; dropping only that one is free, more needs an engine that can crop.
    """

    force: tuple[int, ...] = ()
    drop: int = 0


KEEP = Directive()


class Watcher(Protocol):
    """Follows one row; pure logic, called once per sampled token."""

    def observe(self, token: int) -> Directive:
        """Take note of a sampled token and say what to do; `KEEP` (by identity) means nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling options; None leaves the model's own generation default. `temperature=0` is greedy."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Signals:
    """Of the distribution that a token was sampled from, as the model gives it, before temperature and cuts.

    entropy in nats; top and chosen are the probabilities of the likeliest and of the sampled token.
    """

    entropy: float
    top: float
    chosen: float


@dataclass(frozen=True, slots=True)
class Request:
    """One row: prompt ids in, at most `max_new_tokens` output tokens (sampled and forced), watched or not.

    signals: report those of each sampled token.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    watcher: Watcher | None = None
    signals: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """Output ids without the end-of-sequence token, which of them were forced, and how the row ended.

    signals: one per token where they were asked for, None at forced tokens; otherwise empty.
    """

    token_ids: tuple[int, ...]
    forced: tuple[bool, ...]
    finish_reason: FinishReason
    dropped: int = 0
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
    """Of: `crop` (directives may drop more than one token), `ragged` (k forced tokens cost one forward), `signals`."""
    context_length: int | None

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests as one batch, in order."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
