"""What a remote engine needs of whatever generates its tokens: one stream per request, which ends by being closed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from ....errors import CapabilityError, ModelError
from ....models import load_tokenizer as load_files
from ....models import resolve_checkpoint
from ...types import TOP, Completion, SamplingParams, Signals

T = TypeVar("T")
_MAX_TOKENS = 256
"""Tokens of the text that is tokenized again with each piece; beyond that it restarts after the returned ids."""
LONGEST_REST = 60.0  # seconds that a retry gives a server; one that wants more is not asked again
_MAX_HELD = 16  # most tokens held back for the end of their word: some scripts, and some tokenizers, do not end words


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that arrived together."""

    ids: tuple[int, ...] = ()  # with the finish "stop", the last one is an end-of-sequence token
    signals: tuple[Signals, ...] = ()  # one per token where they were requested
    finish: Literal["stop", "length"] | None = None


class StreamError(Exception):
    """A stream failed for a reason that may be temporary.

    The server asks for `retry_after` seconds of rest; `status` is that of its reply, or 0.
    """

    def __init__(self, message: str = "", retry_after: float = 0.0, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after, self.status = retry_after, status


class ServerLostError(ModelError, code="server_lost"):
    """A server was lost for good; `completions` has the output of all requests until then, in order."""

    def __init__(self, message: str, completions: Sequence[Completion] = ()) -> None:
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


async def run_together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What coroutines return that run at the same time, in order; the first error ends all of them and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [task.result() for task in tasks]


def signals_from_logprobs(chosen: float, most_likely: Sequence[float]) -> Signals:
    """Signals from the log-probabilities of the sampled token and of two or more most likely ones, in falling order.

    The entropy is nan: it cannot be known from a part of the distribution. So is the confidence with fewer than `TOP`.
    """
    first, second = math.exp(most_likely[0]), math.exp(most_likely[1])
    confidence = -sum(most_likely[:TOP]) / TOP if len(most_likely) >= TOP else math.nan
    return Signals(math.nan, first, math.exp(chosen), first - second, confidence)


def load_tokenizer(tokenizer: Any, names: Sequence[str]) -> Any:
    """A tokenizer as it is, of a folder or a name; None tries the names of the model. Raises ModelError without one."""
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
    return load_files(name, path)


class StreamingTokenizer:
    """Token ids of a text that arrives in pieces; raises CapabilityError for a tokenizer that has no offsets.

    Tokenizers treat each word by itself, so only the last word can still become other tokens, or be the beginning of an
    added token. With each piece the text so far is tokenized, and the ids of everything before the last word are
    returned. They are final: should the tokenizer later see them differently, the rest is tokenized on its own.
    """

    def __init__(self, tokenizer: Any) -> None:
        check_offsets(tokenizer)
        self.tokenizer = tokenizer
        self._prefixes = {text[:size] for text in tokenizer.get_added_vocab() for size in range(1, len(text))}
        self._longest = max(map(len, self._prefixes), default=0)
        self._text = ""  # since the last restart
        self._returned: list[int] = []  # ids of it that were returned
        self._end = 0  # its characters that they stand for
        self._previous: list[int] = []  # its ids before the latest piece

    def add(self, piece: str, last: bool = False) -> tuple[int, ...]:
        """Append a piece and return the ids that are now final; `last` makes all of them final."""
        self._text += piece
        if len(self._returned) > _MAX_TOKENS:
            self._restart()
        encoding = self._encode()
        if encoding["input_ids"][: len(self._returned)] != self._returned:
            self._restart()
            encoding = self._encode()
        ids, offsets, known = encoding["input_ids"], encoding["offset_mapping"], len(self._returned)
        size = len(ids) if last else self._count_final(ids, offsets, encoding.word_ids())
        self._previous = ids
        if size <= known:
            return ()
        self._returned, self._end = ids[:size], offsets[size - 1][1]
        return tuple(ids[known:size])

    def _count_final(self, ids: list[int], offsets: list[tuple[int, int]], words: list[int | None]) -> int:
        """How many of the ids no further text can change."""
        same, limit = 0, min(len(self._previous), len(ids) - _MAX_HELD)
        while same < limit and ids[same] == self._previous[same]:
            same += 1
        size = max(same, len(ids) - 1)
        while size > same and words[size - 1] == words[-1]:
            size -= 1
        end = len(self._text) - self._partial_added_token()
        while size > 0 and (offsets[size - 1][1] > end or offsets[size][0] < offsets[size - 1][1]):
            size -= 1  # neither within a possible added token nor within a character of several tokens
        return size

    def _partial_added_token(self) -> int:
        """How many of the last characters may be the beginning of an added token."""
        sizes = range(min(self._longest, len(self._text)), 0, -1)
        return next((size for size in sizes if self._text[-size:] in self._prefixes), 0)

    def _restart(self) -> None:
        self._text = self._text[self._end :]
        self._returned, self._end, self._previous = [], 0, []

    def _encode(self) -> Any:
        return self.tokenizer(self._text, add_special_tokens=False, return_offsets_mapping=True)


def check_offsets(tokenizer: Any) -> None:
    """Raise CapabilityError for a tokenizer without offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise CapabilityError(
            f"the server returns no token ids, and {type(tokenizer).__name__} cannot find them in text; use a server "
            "that returns ids (vLLM), or a model with a fast tokenizer",
            code="slow_tokenizer",
        )
