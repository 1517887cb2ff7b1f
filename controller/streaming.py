"""Thinking and answer text while a generation runs, and a watcher by which its consumer can cancel it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from .controller import Controller
from .text.markers import Markers
from .text.reasoning_parser import Channel, ReasoningParser, TextDelta
from .text.tokenizer_adapter import TokenizerAdapter
from .trace import Decision
from .types import KEEP, Directive, Request, StepInfo, SuspendableWatcher, Watcher


@dataclass(frozen=True, slots=True)
class TextDeltaEvent:
    """New text of one row, without thinking markers."""

    row: int
    text: str
    channel: Channel
    decision: Decision | None = None
    """Explains text that the controller wrote; its text is empty where only a marker was written."""


EventSink = Callable[[TextDeltaEvent], None]


class StreamedRow(Protocol):
    """A row that is streamed."""

    @property
    def controller(self) -> Controller | None:
        """The controller whose last decision explains forced text, if any."""

    @property
    def state(self) -> str:
        """Where the prompt leaves the model; see `ReasoningParser`."""


class StreamEmitter:
    """A token sink that emits `TextDeltaEvent`s of whole characters.

    The texts of a channel add up to the result's `thinking` or `answer`, unless tokens were retracted after they had
    been emitted. `parsers` are those of the rows, for example with stop strings; by default without.
    """

    def __init__(
        self,
        codec: TokenizerAdapter,
        markers: Markers,
        rows: Sequence[StreamedRow],
        emit: EventSink,
        parsers: Sequence[ReasoningParser] | None = None,
    ) -> None:
        self.codec, self.rows, self.emit = codec, rows, emit
        self.parsers = parsers or [ReasoningParser(markers, row.state, codec=codec) for row in rows]
        self._pending: list[list[int]] = [[] for _ in rows]

    def __call__(self, row: int, tokens: Sequence[int], forced: bool) -> None:
        """Take tokens from the engine; see `types.TokenSink`."""
        parser = self.parsers[row]
        if forced:
            self._emit(row, self._feed_pending(row))
        self._pending[row].extend(tokens)
        if not tokens:
            return
        if forced:
            parser.forced |= parser.markers.close in self.codec.decode(tokens)
            self._emit_forced(row, self._feed_pending(row), parser.channel)
        elif not self.codec.decode(self._pending[row]).endswith("\ufffd"):
            self._emit(row, self._feed_pending(row))

    def finish(self) -> None:
        for row in range(len(self.rows)):
            self.finish_row(row)

    def finish_row(self, row: int, thinking: str | None = None, answer: str | None = None) -> None:
        """Emit what is held back of one row; see `ReasoningParser.finish` for the arguments."""
        self._emit(row, self._feed_pending(row))
        self._emit(row, self.parsers[row].finish(thinking, answer))

    def _feed_pending(self, row: int) -> list[TextDelta]:
        deltas = self.parsers[row].feed_tokens(self._pending[row]) if self._pending[row] else []
        self._pending[row].clear()
        return deltas

    def _emit(self, row: int, deltas: Sequence[TextDelta], decision: Decision | None = None) -> None:
        for delta in deltas:
            self.emit(TextDeltaEvent(row, delta.text, delta.channel, decision))
            decision = None

    def _emit_forced(self, row: int, deltas: Sequence[TextDelta], channel: Channel) -> None:
        """Emit forced text, its decision with the first event."""
        controller = self.rows[row].controller
        decisions = reversed(controller.decisions) if controller else ()
        decision = next((decision for decision in decisions if decision.text), None)
        self._emit(row, deltas or [TextDelta(channel, "")], decision)


_STOP = Directive(stop=True)


class CancellableWatcher:
    """Wraps a sequence's watcher, and ends the sequence once `is_cancelled()`; implements `types.Watcher`."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self.is_cancelled = is_cancelled
        self.inner: Watcher | None = None
        self._trial_tokens = 0  # of the trial in progress

    def wrap(self, request: Request) -> Request:
        """The same request, watched by this watcher around its own."""
        self.inner = request.watcher
        return replace(request, watcher=self)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        if self.is_cancelled():
            if self._trial_tokens:
                return Directive(retract=self._trial_tokens + 1, trial=False, stop=True)
            return _STOP
        if self.inner is None:
            return KEEP
        directive = self.inner.observe(token, step)
        if directive.trial or (self._trial_tokens and directive.trial is None):
            before = self._trial_tokens + 1 if self._trial_tokens else 0
            self._trial_tokens = before - directive.retract + len(directive.force)
        else:
            self._trial_tokens = 0
        return directive

    def resume(self) -> Directive:
        return _STOP if self.is_cancelled() else cast(SuspendableWatcher, self.inner).resume()
