"""One row of a continuing engine: reads a stream, carries out what its watcher says, and goes on from there."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace

from ....errors import OptionError
from ...types import Completion, Request, SamplingParams, State, StepInfo
from ..sequence import WAIT, SequenceState
from .backend import Chunk, CompletionBackend, StreamError

_TRIAL = 64
"""Tokens that are asked for at a time while a trial is under way; its watcher ends it, mostly long before."""
_GREEDY = SamplingParams(temperature=0.0)
_PAUSE = 0.2  # seconds before a lost stream is taken up again, doubled each further time


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What the rows of a call share.

    slots: how many streams may be open. waiter: one thread in which rows rest, so that who writes for several rows at
    once is not asked twice. retries: how often a stream is taken up again that was lost before it brought a token.
    """

    backend: CompletionBackend
    slots: asyncio.Semaphore
    waiter: Executor
    retries: int


class RemoteRequest:
    """A row on its way; `sampling` is that of the batch."""

    def __init__(self, shared: RemoteState, row: SequenceState, request: Request, sampling: SamplingParams) -> None:
        self.shared, self.row, self.request = shared, row, request
        warm = request.temperature is not None and sampling.temperature != 0
        self.sampling = replace(sampling, temperature=request.temperature) if warm else sampling
        self._sampled = 0  # tokens the watcher was shown
        self._submissions = 0
        self._unread = 0  # tokens forced since the last submission, which the model has not read
        self._reread = 0
        self._spilt = self._spilt_in_trials = 0  # tokens that came after the one that was acted on

    async def run(self) -> Completion:
        """Write the row to its end; raises StreamError if the backend is lost for good."""
        row, lost = self.row, 0
        while row.finish is None:
            before = self._sampled
            try:
                await self._write()
            except StreamError:
                lost = lost + 1 if self._sampled == before else 1
                if lost > self.shared.retries:
                    raise
                await asyncio.sleep(_PAUSE * 2 ** (lost - 1))
                continue
            while row.pending is not None:
                await asyncio.get_running_loop().run_in_executor(self.shared.waiter, row.pending.wait)
                self._unread += len(row.wake(WAIT).add)
        done = self.completion()
        if row.tell is not None:
            row.tell(done)
        return done

    def completion(self) -> Completion:
        """What the row has put out so far; what came too late to be used counts as dropped, in trials as trial."""
        done = self.row.completion()
        return replace(
            done,
            dropped=done.dropped + self._spilt,
            trial=done.trial + self._spilt_in_trials,
            reprefilled=self._reread,
        )

    async def _write(self) -> None:
        """Read one stream until the row ends, rests, or has to go on from other tokens than the stream does."""
        row, shared = self.row, self.shared
        ids = (*self.request.prompt_ids, *row.tokens)
        if self._submissions:
            self._reread += len(ids) - self._unread
        self._submissions += 1
        self._unread = 0
        stream = shared.backend.stream(ids, self._limit(len(ids)), self._sampling(), self.request.signals)
        async with shared.slots, aclosing(stream) as chunks:
            async for chunk in chunks:
                if not self._take(chunk):
                    return

    def _limit(self, size: int) -> int:
        """How many tokens to ask for on a text of this size."""
        if not self.row.trial:
            return int(self.row.budget) - len(self.row.tokens)
        context = self.shared.backend.context_length
        return _TRIAL if context is None else max(1, min(_TRIAL, context - size))

    def _sampling(self) -> SamplingParams:
        """How this submission samples: trials greedily, all else with a seed that nothing else in the batch has."""
        if self.row.trial and not self.row.drawn:
            return _GREEDY
        if self.sampling.seed is None:
            return self.sampling
        draws = random.Random(f"{self.sampling.seed} {self.row.index} {self._sampled}")
        return replace(self.sampling, seed=draws.getrandbits(31))

    def _take(self, chunk: Chunk) -> bool:
        """Show a chunk to the watcher, token by token; whether the stream still is what the row goes on with."""
        row = self.row
        for place, token in enumerate(chunk.ids):
            trial, rest = row.trial, len(chunk.ids) - place - 1
            if chunk.finish == "stop" and not rest:
                row.eos |= {token}
            self._sampled += 1
            edit = row.advance(token, False, self._seen(chunk, place))
            if edit is None and row.finish is None:
                continue
            self._unread = len(edit.add) if edit is not None else 0
            if trial:
                self._spilt_in_trials += rest
            else:
                self._spilt += rest
            return False
        if chunk.finish is not None and not row.trial:
            row.finish = chunk.finish  # the server's own end: of its context, or of what it lets anybody ask for
        return chunk.finish is None

    def _seen(self, chunk: Chunk, place: int) -> StepInfo | None:
        """What is known of a token of a chunk; no signals of an end that the server did not tell as a token."""
        if not self.request.signals:
            return None
        return StepInfo(chunk.signals[place] if place < len(chunk.signals) else None, _unread)


def _unread(layer: int) -> State:
    raise OptionError(f"hidden layer {layer} cannot be read from a server")
