"""One sequence of a remote engine: reads a stream, carries out what its watcher says, and continues from there."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import CancelledError, Executor, Future
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from ....errors import OptionError
from ...types import TOP, Completion, Request, SamplingParams, State, StepInfo
from ..sequence import WAIT, SequenceState
from .backend import Chunk, CompletionBackend, StreamError

_TRIAL_LIMIT = 64
"""Tokens that are requested at a time during a trial; its watcher mostly ends it long before."""
_GREEDY = SamplingParams(temperature=0.0)
_RETRY_DELAY = 0.2  # seconds before the first retry, doubled for each further one


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What all sequences of an engine share."""

    backend: CompletionBackend
    slots: asyncio.Semaphore
    """Limits the open streams."""
    waiter: Executor
    """One thread in which suspended sequences wait, so that a helper that writes for several of them at once is not
    called twice."""
    retries: int
    """How often a stream is resubmitted that was lost without a new token."""


class RemoteRequest:
    """A sequence in flight; `sampling` is the batch's."""

    def __init__(self, state: RemoteState, sequence: SequenceState, request: Request, sampling: SamplingParams) -> None:
        self.state, self.sequence, self.request = state, sequence, request
        own_temperature = request.temperature is not None and sampling.temperature != 0
        self.sampling = replace(sampling, temperature=request.temperature) if own_temperature else sampling
        self.lost: StreamError | None = None  # why the backend was lost for good
        self._sampled = 0  # tokens that the watcher has seen
        self._submissions = 0
        self._unsubmitted = 0  # tokens forced since the last submission
        self._recomputed = 0
        self._late = self._late_in_trials = 0  # tokens that arrived after one that was acted on

    async def run(self) -> Completion:
        """Generate the sequence to its end; raises StreamError if the backend is lost for good."""
        sequence, failures = self.sequence, 0
        while sequence.finish is None:
            sampled_before = self._sampled
            try:
                await self._read_stream()
            except StreamError as error:
                failures = failures + 1 if self._sampled == sampled_before else 1
                if failures > self.state.retries:
                    raise
                await asyncio.sleep(max(error.retry_after, _RETRY_DELAY * 2 ** (failures - 1)))
                continue
            while sequence.waiting_for is not None:
                await asyncio.get_running_loop().run_in_executor(self.state.waiter, _wait, sequence.waiting_for)
                self._unsubmitted += len(sequence.wake(WAIT).add)
        completion = self.completion()
        if sequence.notify is not None:
            sequence.notify(completion)
        return completion

    def completion(self) -> Completion:
        """The output so far; tokens that arrived too late to be used count as dropped, in trials as trial tokens."""
        completion = self.sequence.completion()
        return replace(
            completion,
            dropped=completion.dropped + self._late,
            trial=completion.trial + self._late_in_trials,
            recomputed=completion.recomputed + self._recomputed,
        )

    async def _read_stream(self) -> None:
        """Read one stream until the sequence ends, is suspended, or must continue from other tokens."""
        ids = (*self.request.prompt_ids, *self.sequence.tokens)
        if self._submissions:
            self._recomputed += len(ids) - self._unsubmitted
        self._submissions += 1
        self._unsubmitted = 0
        stream = self.state.backend.stream(ids, self._stream_limit(len(ids)), self._stream_sampling(), self._logprobs)
        async with self.state.slots, aclosing(stream) as chunks:
            async for chunk in chunks:
                if not self._observe_chunk(chunk):
                    return

    def _stream_limit(self, size: int) -> int:
        """How many tokens to request after `size` tokens."""
        if not self.sequence.trial:
            return int(self.sequence.limit) - len(self.sequence.tokens)
        context = self.state.backend.context_length
        return _TRIAL_LIMIT if context is None else max(1, min(_TRIAL_LIMIT, context - size))

    @property
    def _logprobs(self) -> int:
        """Of how many of the likeliest tokens to report the log-probability."""
        return TOP if self.request.confidence else 2 * self.request.signals

    def _stream_sampling(self) -> SamplingParams:
        """Trials are greedy; everything else has a seed that nothing else in the batch has."""
        if self.sequence.trial and not self.sequence.trial_sampled:
            return _GREEDY
        if self.sampling.seed is None:
            return self.sampling
        rng = random.Random(f"{self.sampling.seed} {self.sequence.index} {self._sampled}")
        return replace(self.sampling, seed=rng.getrandbits(31))

    def _observe_chunk(self, chunk: Chunk) -> bool:
        """Show a chunk to the watcher token by token; return whether the sequence still continues the stream."""
        sequence = self.sequence
        for position, token in enumerate(chunk.ids):
            trial, late = sequence.trial, len(chunk.ids) - position - 1
            if chunk.finish == "stop" and not late:
                sequence.eos |= {token}
            self._sampled += 1
            edit = sequence.advance(token, False, self._step_info(chunk, position))
            if edit is None and sequence.finish is None:
                continue
            self._unsubmitted = len(edit.add) if edit is not None else 0
            if trial:
                self._late_in_trials += late
            else:
                self._late += late
            return False
        if chunk.finish is not None and not sequence.trial:
            sequence.finish = chunk.finish  # the server's own end, such as the end of its context
        return chunk.finish is None

    def _step_info(self, chunk: Chunk, position: int) -> StepInfo | None:
        """What is known about a token of a chunk; an end that the server did not send as a token has no signals."""
        if not self.request.signals:
            return None
        return StepInfo(chunk.signals[position] if position < len(chunk.signals) else None, _refuse_state)


def _wait(future: Future[Any]) -> None:
    """Wait until a future is done; what became of it is its watcher's matter."""
    with suppress(CancelledError):
        future.exception()


def _refuse_state(layer: int) -> State:
    raise OptionError(f"hidden layer {layer} cannot be read from a server")
