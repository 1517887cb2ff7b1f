"""What a remote engine needs of whatever generates its tokens: one stream per request, which ends by being closed."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ....errors import ModelError
from ...types import TOP, Completion, SamplingParams, Signals
from ..checkpoints import check_tokenizer, load_or_raise, resolve_checkpoint


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that arrived together."""

    ids: tuple[int, ...] = ()  # with the finish "stop", the last one is an end-of-sequence token
    signals: tuple[Signals, ...] = ()  # one per token where they were requested
    finish: Literal["stop", "length"] | None = None


class StreamError(Exception):
    """A stream broke, or could not start, for a reason that may be temporary.

    `retry_after` is how many seconds the server wants to be left alone.
    """

    def __init__(self, message: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerLostError(ModelError):
    """A server was lost for good; `completions` has the output of all requests until then, in order."""

    code = "server_lost"

    def __init__(self, message: str, completions: Sequence[Completion]) -> None:
        super().__init__(message)
        self.completions = list(completions)


class CompletionBackend(Protocol):
    """Generates tokens after given ids; all coroutines run in the loop of one engine."""

    name: str
    tokenizer: Any
    has_logprobs: bool  # whether it reports the probabilities of the sampled and of the two most likely tokens
    context_length: int | None  # None if unknown; like all attributes, valid once the backend is open

    async def open(self) -> None:
        """Find out what there is and what it can do; called once, first."""

    def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, logprobs: int
    ) -> AsyncGenerator[Chunk, None]:
        """Generate at most `limit` tokens after `ids`; the last chunk has a finish. Closing the stream ends the work.

        Tokens have signals if `logprobs` is not 0: it is how many of the likeliest tokens to report.
        Raises StreamError for a reason that may be temporary, ModelError for any other.
        """

    async def close(self) -> None:
        """Free everything."""


def signals_from_logprobs(chosen: float, most_likely: Sequence[float]) -> Signals:
    """Signals from the log-probabilities of the sampled token and of two or more most likely ones, in falling order.

    The entropy is nan: it cannot be known from a part of the distribution. So is the confidence with fewer than `TOP`.
    """
    first, second = math.exp(most_likely[0]), math.exp(most_likely[1])
    confidence = -sum(most_likely[:TOP]) / TOP if len(most_likely) >= TOP else math.nan
    return Signals(math.nan, first, math.exp(chosen), first - second, confidence)


def load_tokenizer(tokenizer: Any, names: Sequence[str]) -> Any:
    """A tokenizer object as it is, or the one of a folder or name; None tries the names of the model.

    Templates, markers and policies need the tokenizer of a model that runs elsewhere; without one it is a ModelError.
    """
    if tokenizer is not None:
        return _load_by_name(str(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer
    reasons = []
    for name in dict.fromkeys(names):
        try:
            return _load_by_name(name)
        except ModelError as error:
            reasons.append(str(error))
    raise ModelError(
        f"no tokenizer found for {names[0]!r}; pass tokenizer= ({'; '.join(reasons)})", code="missing_tokenizer"
    )


def _load_by_name(name: str) -> Any:
    folder = Path(name).expanduser()
    path = str(folder) if folder.is_dir() else resolve_checkpoint(name)
    check_tokenizer(name, Path(path))
    from transformers import AutoTokenizer

    return load_or_raise(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(path))
