"""The remote engine: a server generates, is cut off where a watcher acts, and continues from other tokens.

It works on any backend that continues given ids. Where a watcher acts, the sequence's stream is closed, and prompt,
output and forced tokens are submitted again; a server with a prefix cache recomputes hardly any of that. Sequences run
concurrently in one event loop, in a thread that the engine owns: watchers and sinks are called there, one at a time.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from ....errors import CapabilityError, ModelError, OptionError
from ...types import TOP, Capability, Completion, Request, SamplingParams, State, StepInfo, TokenSink
from ..sequence import WAIT, SequenceState, check_max_new_tokens
from . import LONGEST_REST, Chunk, CompletionBackend, ServerLostError, StreamError, run_together

_T = TypeVar("_T")
_CLOSE_TIMEOUT = 5.0  # seconds that streams have to end
_TRIAL_LIMIT = 64  # tokens that are requested at a time during a trial; its watcher mostly ends it long before
_GREEDY = SamplingParams(temperature=0.0)
_RETRY_DELAY = 0.2  # seconds before the first retry, doubled for each further one


class RemoteEngine:
    """Generates on a backend, which it opens and then owns; implements `Engine`. Raises what opening raises.

    A sequence that lost its stream without a new token is resubmitted `retries` times; `streams` are open at most.
    """

    hidden_layers: tuple[int, ...] | None = ()

    def __init__(self, backend: CompletionBackend, *, retries: int = 3, streams: int = 256) -> None:
        self.backend = backend
        self._loop = asyncio.new_event_loop()
        self._calls: set[asyncio.Task[Any]] = set()
        # One thread for all suspended sequences: a helper that writes for several of them at once is not called twice.
        self.waiter = ThreadPoolExecutor(1, "tersely waiter")
        self.slots, self.retries, self.longest_rest = asyncio.Semaphore(streams), retries, LONGEST_REST
        self._thread = threading.Thread(target=self._loop.run_forever, name="tersely remote engine", daemon=True)
        self._thread.start()
        try:
            self._run(backend.open)
        except BaseException:
            self.close()
            raise
        self.name, self.tokenizer = backend.name, backend.tokenizer
        self.eos = frozenset({self.tokenizer.eos_token_id} - {None})
        self.context_length = backend.context_length
        reported = {Capability.LOGPROBS, Capability.TOP_LOGPROBS} if backend.has_logprobs else set()
        self.capabilities = frozenset({Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RETRACT} | reported)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Generate all requests concurrently; the completions are in order. An interrupt closes all streams.

        Signals have no entropy (nan). Raises PromptError and OptionError for what does not fit the context,
        CapabilityError for what no server can do, ModelError where the server refuses or is lost (ServerLostError).
        """
        return self._run(lambda: self.generate_in_loop(requests, sampling, sink))

    async def agenerate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """`generate` for callers in an event loop of their own; cancelling it closes all streams."""
        return await asyncio.wrap_future(self._submit(lambda: self.generate_in_loop(requests, sampling, sink)))

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> NoReturn:
        """See `Engine.hidden_states`; a server does not show them."""
        raise CapabilityError(f"{self.name} does not show hidden states; use a model in this process")

    def fingerprint(self) -> str | None:
        """None: it is unknown which weights a server runs."""
        return None

    def close(self) -> None:
        """Cancel running calls and close the backend."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._shut_down)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self.waiter.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        if self._loop.is_closed():
            raise ModelError(f"the engine {self.name!r} was closed; connect again", code="engine_closed")
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine in the loop and wait for it; if this thread is interrupted, the coroutine is cancelled."""
        ended = threading.Event()

        async def run_and_signal() -> _T:
            try:
                return await work()
            finally:
                ended.set()

        future = self._submit(run_and_signal)
        try:
            return future.result()
        except CancelledError:
            raise ModelError(f"the engine {self.name!r} was closed during a call", code="engine_closed") from None
        except BaseException:
            if future.cancel():
                ended.wait(_CLOSE_TIMEOUT)
            raise

    async def _shut_down(self) -> None:
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_CLOSE_TIMEOUT)
        await self.backend.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def generate_in_loop(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """`agenerate` in the event loop that runs, without another thread in between.

        Only for a backend that works in any loop, as a server's does; the caller closes that backend in this loop.
        """
        running = [
            RemoteRequest(self, self._make_sequence(index, request, sink), request, sampling)
            for index, request in enumerate(requests)
        ]
        call: Any = asyncio.current_task()
        if asyncio.get_running_loop() is self._loop:  # others are for their callers to cancel
            self._calls.add(call)
        try:
            completions = await run_together(request.run() for request in running)
        except asyncio.CancelledError:
            for request in running:
                if request.sequence.finish is None:
                    request.notify()
            raise
        finally:
            self._calls.discard(call)
        if error := next((request.lost for request in running if request.lost is not None), None):
            tokens = sum(len(completion.token_ids) for completion in completions)
            lost = sum(request.lost is not None for request in running)
            raise ServerLostError(
                f"{self.name} was lost after {tokens} tokens, for {lost} of {len(running)} request(s) after "
                f"{self.retries} retries ({error})",
                completions,
            ) from error
        return completions

    def _make_sequence(self, index: int, request: Request, sink: TokenSink | None) -> SequenceState:
        needs = {
            "hidden states": request.layers,
            "forward modifiers": request.modifiers,
            "signals": request.signals and Capability.LOGPROBS not in self.capabilities,
        }
        if missing := [need for need, wanted in needs.items() if wanted]:
            raise CapabilityError(f"request {index} needs {', '.join(missing)}, which {self.name} does not offer")
        return SequenceState(
            index,
            eos=self.eos,
            limit=check_max_new_tokens(request, index, self.context_length, self.name),
            ragged=True,
            last_prompt_token=request.prompt_ids[-1],
            watcher=request.watcher,
            sink=sink,
            keep_signals=request.signals,
        )


class RemoteRequest:
    """A sequence in flight; `sampling` is the batch's."""

    def __init__(
        self, engine: RemoteEngine, sequence: SequenceState, request: Request, sampling: SamplingParams
    ) -> None:
        self.engine, self.sequence, self.request = engine, sequence, request
        own_temperature = request.temperature is not None and sampling.temperature != 0
        self.sampling = replace(sampling, temperature=request.temperature) if own_temperature else sampling
        self.lost: StreamError | None = None  # why the backend was lost for good
        self._sampled = 0  # tokens that the watcher has seen
        self._submissions = 0
        self._unsubmitted = 0  # tokens forced since the last submission
        self._recomputed = 0
        self._late = self._late_in_trials = 0  # tokens that arrived after one that was acted on

    async def run(self) -> Completion:
        """Generate the sequence to its end, or until the backend is `lost` for good, which does not end the others."""
        sequence, failures = self.sequence, 0
        while sequence.finish is None:
            sampled_before = self._sampled
            try:
                await self._read_stream()
            except StreamError as error:
                failures = failures + 1 if self._sampled == sampled_before else 1
                if failures > self.engine.retries or error.retry_after > self.engine.longest_rest:
                    self.lost = error
                    return self.completion()
                await asyncio.sleep(max(error.retry_after, _RETRY_DELAY * 2 ** (failures - 1)))
                continue
            while sequence.waiting_for is not None:
                await asyncio.get_running_loop().run_in_executor(self.engine.waiter, _wait, sequence.waiting_for)
                self._unsubmitted += len(sequence.wake(WAIT).add)
        return self.notify()

    def notify(self) -> Completion:
        """Tell the listener that the sequence ends here."""
        completion = self.completion()
        if self.sequence.notify is not None:
            self.sequence.notify(completion)
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
        logprobs = TOP if self.request.confidence else 2 * self.request.signals  # of how many of the likeliest tokens
        stream = self.engine.backend.stream(ids, self._stream_limit(len(ids)), self._stream_sampling(), logprobs)
        async with self.engine.slots, aclosing(stream) as chunks:
            async for chunk in chunks:
                if not self._observe_chunk(chunk):
                    return

    def _stream_limit(self, size: int) -> int:
        """How many tokens to request after `size` tokens."""
        if not self.sequence.trial:
            return int(self.sequence.limit) - len(self.sequence.tokens)
        context = self.engine.backend.context_length
        return _TRIAL_LIMIT if context is None else max(1, min(_TRIAL_LIMIT, context - size))

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
