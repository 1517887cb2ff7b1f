"""The remote engine: a server generates, is cut off where a watcher acts, and continues from other tokens.

It works on any backend that continues given ids. Where a watcher acts, the sequence's stream is closed, and prompt,
output and forced tokens are submitted again; a server with a prefix cache recomputes hardly any of that. Sequences run
concurrently in one event loop, in a thread that the engine owns: watchers and sinks are called there, one at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from ....errors import CapabilityError, ModelError
from ...types import Capability, Completion, Request, SamplingParams, TokenSink
from ..sequence import SequenceState, check_max_new_tokens
from .backend import CompletionBackend, ServerLostError, StreamError
from .stream_request import RemoteRequest, RemoteState

_T = TypeVar("_T")
_CLOSE_TIMEOUT = 5.0  # seconds that streams have to end


class RemoteEngine:
    """Generates on a backend, which it opens and then owns; implements `Engine`. Raises what opening raises.

    Args:
        retries: how often a sequence is resubmitted after it lost its stream without a new token.
        streams: most streams that are open at the same time.
    """

    hidden_layers: tuple[int, ...] | None = ()

    def __init__(self, backend: CompletionBackend, *, retries: int = 3, streams: int = 256) -> None:
        self.backend = backend
        self._loop = asyncio.new_event_loop()
        self._calls: set[asyncio.Task[Any]] = set()
        self._waiter = ThreadPoolExecutor(1, "tersely waiter")
        self._thread = threading.Thread(target=self._loop.run_forever, name="tersely remote engine", daemon=True)
        self._thread.start()
        self._state = RemoteState(backend, asyncio.Semaphore(streams), self._waiter, retries)
        try:
            self._run(backend.open)
        except BaseException:
            self.close()
            raise
        self.name, self.tokenizer = backend.name, backend.tokenizer
        self.eos = frozenset({self.tokenizer.eos_token_id} - {None})
        self.context_length = backend.context_length
        capabilities = {Capability.KV_ROLLBACK, Capability.RETRACT}
        reported = {Capability.LOGPROBS, Capability.TOP_LOGPROBS} if backend.has_logprobs else set()
        self.capabilities = frozenset(capabilities | reported)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Generate all requests concurrently; the completions are in order. An interrupt closes all streams.

        Signals have no entropy (nan).

        Raises:
            PromptError, OptionError: a prompt is empty or fills the context, or a limit is below one.
            CapabilityError: a request needs what no server can do.
            ModelError: the server refuses a request, or (ServerLostError) is lost.
        """
        return self._run(lambda: self._generate_all(requests, sampling, sink))

    async def agenerate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """`generate` for callers in an event loop of their own; cancelling it closes all streams."""
        future = self._submit(lambda: self._generate_all(requests, sampling, sink))
        completions: list[Completion] = await asyncio.wrap_future(future)
        return completions

    async def generate_in_loop(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """`agenerate` in the event loop that runs, without another thread in between.

        Only for a backend that works in any loop, as a server's does; the caller closes that backend in this loop.
        """
        return await self._generate_all(requests, sampling, sink)

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
            self._waiter.shutdown(wait=False, cancel_futures=True)

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

    async def _generate_all(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None
    ) -> list[Completion]:
        sequences = [self._make_sequence(index, request, sink) for index, request in enumerate(requests)]
        running = [
            RemoteRequest(self._state, sequence, request, sampling)
            for sequence, request in zip(sequences, requests, strict=True)
        ]
        call: Any = asyncio.current_task()
        if asyncio.get_running_loop() is self._loop:  # others are for their callers to cancel
            self._calls.add(call)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_run_or_lose(request)) for request in running]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._calls.discard(call)
        completions = [task.result() or request.completion() for task, request in zip(tasks, running, strict=True)]
        if error := next((request.lost for request in running if request.lost is not None), None):
            tokens = sum(len(completion.token_ids) for completion in completions)
            lost = sum(request.lost is not None for request in running)
            raise ServerLostError(
                f"{self.name} was lost after {tokens} tokens, for {lost} of {len(running)} request(s) after "
                f"{self._state.retries} retries ({error}); the output is in `completions`",
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


async def _run_or_lose(request: RemoteRequest) -> Completion | None:
    """The completion of a request; None where it is lost for good, which does not end the others."""
    try:
        return await request.run()
    except StreamError as error:
        request.lost = error
        return None
