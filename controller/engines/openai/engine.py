"""The continuing engine: rows written by somebody else, who is cut off and asked to go on from other tokens.

Any backend that writes on given ids will do. Where a watcher acts, the row's stream is closed and prompt, output and
forced tokens are submitted anew; a server with a prefix cache reads hardly any of that twice. Rows run concurrently in
one loop, in a thread that the engine owns: watchers and sinks are called there, one at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ....errors import CapabilityError, ModelError, OptionError, PromptError
from ...types import Completion, Request, SamplingParams, TokenSink
from ..sequence import SequenceState
from .backend import CompletionBackend, ServerLostError, StreamError
from .stream_request import RemoteRequest, RemoteState

_T = TypeVar("_T")
_CLOSING = 5.0  # seconds that streams are given to end


class RemoteEngine:
    """Decodes on a backend, which is opened here and belongs to the engine from then on; implements `Engine`.

    retries: how often a row goes on after losing its stream without having got a token from it. streams: most that are
    open at once. Raises what opening the backend raises.
    """

    def __init__(self, backend: CompletionBackend, *, retries: int = 3, streams: int = 256) -> None:
        self.backend = backend
        self._loop = asyncio.new_event_loop()
        self._calls: set[asyncio.Task[Any]] = set()
        self._waiter = ThreadPoolExecutor(1, "tersely rest")
        self._thread = threading.Thread(target=self._loop.run_forever, name="tersely continuing", daemon=True)
        self._thread.start()
        self._shared = RemoteState(backend, asyncio.Semaphore(streams), self._waiter, retries)
        try:
            self._wait(backend.open)
        except BaseException:
            self.close()
            raise
        self.name, self.tokenizer = backend.name, backend.tokenizer
        self.eos = frozenset({self.tokenizer.eos_token_id} - {None})
        self.context_length = backend.context_length
        self.capabilities = frozenset({"crop", "retract", *(("chances",) if backend.chances else ())})

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """Decode all requests concurrently; the completions are in order. An interrupt closes all streams.

        Signals have no entropy (nan). Raises PromptError for a prompt that is empty or fills the context, OptionError
        for a limit below one, CapabilityError for a request that no server can serve, ModelError if the server refuses
        one, and ServerLostError if it is lost.
        """
        return self._wait(lambda: self._all(requests, sampling, sink))

    async def agenerate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        """The same for callers with a loop of their own; cancelling it closes all streams."""
        future = self._submit(lambda: self._all(requests, sampling, sink))
        done: list[Completion] = await asyncio.wrap_future(future)
        return done

    def fingerprint(self) -> str | None:
        """None: nobody can tell which weights a server runs."""
        return None

    def close(self) -> None:
        """End what is under way and close the backend."""
        if self._loop.is_closed():
            return
        try:
            self._wait(self._shut)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._waiter.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        if self._loop.is_closed():
            raise ModelError(f"the engine {self.name!r} was closed; connect again")
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _wait(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Have the loop do a piece of work; if this thread is interrupted the work is cancelled, streams closed."""
        ended = threading.Event()

        async def watched() -> _T:
            try:
                return await work()
            finally:
                ended.set()

        future = self._submit(watched)
        try:
            return future.result()
        except CancelledError:
            raise ModelError(f"the engine {self.name!r} was closed before it was done") from None
        except BaseException:
            if future.cancel():
                ended.wait(_CLOSING)
            raise

    async def _shut(self) -> None:
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_CLOSING)
        await self.backend.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _all(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None
    ) -> list[Completion]:
        rows = [self._row(index, request, sink) for index, request in enumerate(requests)]
        running = [RemoteRequest(self._shared, *pair, sampling) for pair in zip(rows, requests, strict=True)]
        this: Any = asyncio.current_task()
        self._calls.add(this)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one.run()) for one in running]
        except BaseExceptionGroup as errors:
            error = errors.exceptions[0]
            if isinstance(error, StreamError):
                done = [one.completion() for one in running]
                raise ServerLostError(self._lost(error, done), done) from error
            raise error from None
        finally:
            self._calls.discard(this)
        return [task.result() for task in tasks]

    def _lost(self, error: StreamError, done: Sequence[Completion]) -> str:
        tokens = sum(len(one.token_ids) for one in done)
        return (
            f"{self.name} was lost after {tokens} tokens of {len(done)} row(s), and going on failed "
            f"{self._shared.retries} times ({error}); see what has become of it (what was written: `completions`)"
        )

    def _row(self, index: int, request: Request, sink: TokenSink | None) -> SequenceState:
        return SequenceState(
            index,
            eos=self.eos,
            budget=self._budget(index, request),
            ragged=True,
            last_prompt_token=request.prompt_ids[-1],
            watcher=request.watcher,
            sink=sink,
            measured=request.signals,
        )

    def _budget(self, row: int, request: Request) -> int:
        """The tokens a row may put out: what was asked for, as far as the context holds it."""
        wanted = {
            "hidden states (layers)": request.layers,
            "openings": request.opening,
            "steering": request.steering,
            "a shortcut": request.leaving,
            "signals": request.signals and "chances" not in self.capabilities,
        }
        if missing := [what for what, asked in wanted.items() if asked]:
            raise CapabilityError(f"request {row} asks for {', '.join(missing)}, which {self.name} cannot give")
        if request.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens of request {row} is {request.max_new_tokens}; give at least 1")
        if not request.prompt_ids:
            raise PromptError(f"the prompt of request {row} is empty; give at least one token")
        if self.context_length is None:
            return request.max_new_tokens
        room = self.context_length - len(request.prompt_ids)
        if room < 1:
            raise PromptError(
                f"the prompt of request {row} has {len(request.prompt_ids)} tokens and {self.name} takes "
                f"{self.context_length} in all; shorten it"
            )
        return min(request.max_new_tokens, room)
