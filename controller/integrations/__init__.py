"""What the adapters of all frameworks share: settings, sessions, and calls in batches on engines of several callers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel, PrivateAttr

from ...errors import TerselyError, check_known
from ..api import open_session, resolve_engine
from ..budgets import canonical_effort
from ..options import OPTION_NAMES, SAMPLING_OPTIONS, GenerationOptions, make_options, option_field
from ..policies import make_policies, resolve_modifier
from ..session import BatchRow, Session, make_sink
from ..streaming import TextDeltaEvent
from ..text.reasoning_parser import TextDelta, truncate_at_stop
from ..trace import GenerationResult
from ..types import Engine, Prompt
from ..verification import settle

_GUARD = threading.Lock()
_RUNNERS: WeakKeyDictionary[Engine, BatchRunner] = WeakKeyDictionary()


class TerselyModel(BaseModel):
    """A chat model on one of tersely's engines, whatever the framework; settings are those of `tersely.generate`.

    A model is a name or folder, loaded at its first use and once per process, an `Engine` or a `Session`.
    """

    model: Any = "tersely-tiny-small"
    effort: str = option_field("effort")
    preset: str | None = option_field("preset")
    policies: Sequence[Any] | None = option_field("policies")
    modifiers: Sequence[Any] = option_field("modifiers")
    max_tokens: int | None = option_field("max_new_tokens")
    thinking_budget: int | None = option_field("thinking_budget")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    probes: str | None = option_field("probes")
    answer_reserve: int | None = option_field("answer_reserve")
    strategy: Any = option_field("strategy")
    markers: Any = None
    think_prompt: bool = False
    verifier: Any = None
    helper: Any = None

    _sessions: dict[str, Session] = PrivateAttr(default_factory=dict)

    @classmethod
    def _check_arguments(cls, names: Iterable[str], framework: type[BaseModel], ignored: Collection[str] = ()) -> None:
        """Raise OptionError for an argument that is neither ours nor the framework's."""
        ours = sorted(set(cls.model_fields) - set(framework.model_fields))
        check_known("argument", [n for n in names if n not in framework.model_fields and n not in ignored], ours)

    def _check_values(self) -> None:
        """Raise OptionError for an unknown effort, preset, policy or modifier."""
        canonical_effort(self.effort)
        make_policies(self.preset, self.policies)
        for modifier in self.modifiers:
            resolve_modifier(modifier)

    @property
    def model_name(self) -> str:
        if isinstance(self.model, (str, os.PathLike)):
            return os.fspath(self.model)
        return str(getattr(self.model, "engine", self.model).name)

    def session(self, model: Any = None) -> Session:
        """The session of this model, or of another one given by name; opened at its first use."""
        model = self.model if model is None else model
        if isinstance(model, Session):
            return model
        name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
        if name not in self._sessions:
            engine = shared_engine(model)
            self._sessions[name] = open_session(
                engine, None, self.markers, self.think_prompt, self.verifier, self.helper
            )
        return self._sessions[name]

    def _build_options(
        self, settings: Mapping[str, Any], after_tool: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> GenerationOptions:
        """The options of a call, whose settings take the place of the model's.

        The text of a tool is untrusted, so it must not raise the budget: `after_tool`, effort `auto` becomes `normal`.
        """
        own = {name: getattr(self, name) for name in CALL_SETTINGS if name in type(self).model_fields}
        settings = {**own, **settings}
        effort = settings.get("reasoning_effort") or settings["effort"]
        if after_tool and canonical_effort(effort) == "auto":
            effort = "normal"
        return make_options(
            effort=effort,
            max_new_tokens=settings["max_tokens"],
            tools=tools,
            **{name: settings[name] for name in _OPTIONS if name != "effort"},
        )


_OPTIONS = tuple(name for name in (*OPTION_NAMES, *SAMPLING_OPTIONS) if name in TerselyModel.model_fields)
CALL_SETTINGS = ("reasoning_effort", "max_tokens", *_OPTIONS)  # settings that may be given with each call


def shared_engine(model: Any) -> Engine:
    """The engine of a model, loaded once however many threads ask for it."""
    with _GUARD:
        return resolve_engine(model)


def get_runner(engine: Engine) -> BatchRunner:
    """The runner of an engine, shared by all its callers."""
    with _GUARD:
        return _RUNNERS.setdefault(engine, BatchRunner())


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to answer."""

    session: Session
    prompt: Prompt
    options: GenerationOptions
    stops: tuple[str, ...] = ()  # strings that end the answer; the thinking is not searched for them
    hide: str = ""  # the answer is not streamed from this text on, such as the start of a tool call
    model: str = ""  # the name to report


class BatchRunner:
    """Runs calls on one engine, one batch at a time; `lock` is held while the engine is used.

    Cancelling a future of `submit` with `cancellable` stops its sequence, or takes its call out of the queue.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def generate(self, call: Call) -> GenerationResult:
        future: Future[GenerationResult] = Future()
        self._run([call], [future])
        return future.result()

    def submit(self, calls: Sequence[Call], cancellable: bool = False) -> list[Future[GenerationResult]]:
        """Answer calls of one model with the same options as one batch, in the background."""
        futures: list[Future[GenerationResult]] = [Future() for _ in calls]
        if calls:
            self._start(calls, futures, None, cancellable)
        return futures

    def stream(self, call: Call) -> Generator[TextDelta | GenerationResult, None, None]:
        """Yield an answer's deltas, then its result. Closing the generator stops the sequence and waits for that."""
        queue: SimpleQueue[TextDelta | None] = SimpleQueue()
        future: Future[GenerationResult] = Future()
        thread = self._start([call], [future], queue.put, True)
        try:
            yield from iter(queue.get, None)
            yield future.result()
        finally:
            future.cancel()
            thread.join()

    async def astream(self, call: Call) -> AsyncGenerator[TextDelta | GenerationResult, None]:
        """Yield an answer's deltas, then its result. Closing the generator stops the sequence without waiting."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[TextDelta | None] = asyncio.Queue()
        future: Future[GenerationResult] = Future()

        def emit(delta: TextDelta | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(queue.put_nowait, delta)

        self._start([call], [future], emit, True)
        try:
            while (delta := await queue.get()) is not None:
                yield delta
            yield future.result()
        finally:
            future.cancel()

    def _start(self, *run: Any) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=run, name="tersely-runner")
        thread.start()
        return thread

    def _run(
        self,
        calls: Sequence[Call],
        futures: Sequence[Future[GenerationResult]],
        emit: Callable[[TextDelta | None], None] | None = None,
        cancellable: bool = False,
    ) -> None:
        """Resolve all futures; errors become those of their calls. `emit` gets the deltas of a single call, then None.

        An error in preparing a call concerns its own future only.
        """

        def send(event: TextDeltaEvent) -> None:
            if emit is not None and event.text and not futures[0].cancelled():
                emit(TextDelta(event.channel, event.text))

        rows: dict[Future[GenerationResult], BatchRow] = {}
        session, hide = calls[0].session, calls[0].hide
        try:
            with self.lock:
                for call, future in zip(calls, futures, strict=True):
                    is_cancelled = future.cancelled if cancellable else None
                    try:
                        if not future.cancelled():
                            (prepared,) = session.prepare([call.prompt], call.options)
                            rows[future] = BatchRow(
                                session, prepared, is_cancelled, call.stops, hide, send if emit else None
                            )
                    except TerselyError as error:
                        settle(future, error)
                if not rows:
                    return
                requests, sampling = [row.request for row in rows.values()], calls[0].options.sampling
                completions = session.engine.generate(requests, sampling, make_sink(list(rows.values())))
                session.end_batch([row.prepared for row in rows.values()])
            for (future, row), completion in zip(rows.items(), completions, strict=True):
                result = row.result(completion)
                row.emitter.finish(result.thinking, truncate_at_stop(result.answer, [hide])[0])
                settle(future, result)
        except BaseException as error:
            for future in futures:
                settle(future, error)
        finally:
            if emit is not None:
                emit(None)
