"""What a continuing engine asks of whatever writes tokens for it: one stream, which ends by being closed."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ....errors import ModelError
from ...types import Completion, SamplingParams, Signals


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that came at once; an end-of-sequence token is the last of those that came with the finish "stop".

    signals: one per token where they were asked for.
    """

    ids: tuple[int, ...] = ()
    signals: tuple[Signals, ...] = ()
    finish: Literal["stop", "length"] | None = None


class StreamError(Exception):
    """A stream that broke off, or could not begin, for a reason that may pass."""


class ServerLostError(ModelError):
    """What writes the tokens was lost for good; `completions` are what all rows had put out by then, in order."""

    def __init__(self, message: str, completions: Sequence[Completion]) -> None:
        super().__init__(message)
        self.completions = list(completions)


class CompletionBackend(Protocol):
    """Writes tokens on a text of ids; all its coroutines run in the loop of one engine.

    chances: it can tell the probabilities of the sampled and of the two likeliest tokens. context_length: None where it
    does not say. All is known once it was opened.
    """

    name: str
    tokenizer: Any
    chances: bool
    context_length: int | None

    async def open(self) -> None:
        """Find out what is there and what it can do; called once, before anything else."""
        ...

    def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, signals: bool
    ) -> AsyncGenerator[Chunk, None]:
        """Write at most `limit` tokens on `ids`; the last chunk has a finish. Closing the stream ends the work on it.

        Raises StreamError for what may pass, ModelError for what will not.
        """
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...


def parse_signals(chosen: float, likeliest: Sequence[float]) -> Signals:
    """Signals from log probabilities: of the sampled token, and of the two likeliest ones in falling order.

    The entropy is nan: what is seen of the distribution only bounds it.
    """
    first, second = math.exp(likeliest[0]), math.exp(likeliest[1])
    return Signals(math.nan, first, math.exp(chosen), first - second)
