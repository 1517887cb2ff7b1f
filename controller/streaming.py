"""Thinking and answer text while a generation runs, and a watcher by which its consumer can cancel it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from .controller import Controller
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


@dataclass(slots=True)
class StreamEmitter:
    """Emits `TextDeltaEvent`s of whole characters for the tokens of one row; forced text has the controller's decision.

    The texts of a channel add up to the result's `thinking` or `answer`, unless tokens were retracted after they had
    been emitted.
    """

    codec: TokenizerAdapter
    parser: ReasoningParser
    emit: EventSink
    controller: Controller | None = None
    row: int = 0
    _pending: list[int] = field(default_factory=list)

    def __call__(self, tokens: Sequence[int], forced: bool) -> None:
        """Take tokens from the engine; see `types.TokenSink`."""
        if forced:
            self._emit(self._feed_pending())
        self._pending.extend(tokens)
        if not tokens:
            return
        if forced:
            self.parser.forced |= self.parser.markers.close in self.codec.decode(tokens)
            deltas = self._feed_pending()
            decisions = reversed(self.controller.decisions) if self.controller else ()
            decision = next((decision for decision in decisions if decision.text), None)
            self._emit(deltas or [TextDelta(self.parser.channel, "")], decision)
        elif not self.codec.decode(self._pending).endswith("\ufffd"):
            self._emit(self._feed_pending())

    def finish(self, thinking: str | None = None, answer: str | None = None) -> None:
        """Emit what is held back; see `ReasoningParser.finish` for the arguments."""
        self._emit(self._feed_pending())
        self._emit(self.parser.finish(thinking, answer))

    def _feed_pending(self) -> list[TextDelta]:
        deltas = self.parser.feed_tokens(self._pending) if self._pending else []
        self._pending.clear()
        return deltas

    def _emit(self, deltas: Sequence[TextDelta], decision: Decision | None = None) -> None:
        for delta in deltas:
            self.emit(TextDeltaEvent(self.row, delta.text, delta.channel, decision))
            decision = None


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
