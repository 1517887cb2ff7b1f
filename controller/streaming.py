"""Turns an engine's tokens into thinking and answer text while a generation runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .controller import Controller
from .text.markers import Markers
from .text.reasoning_parser import Channel, ReasoningParser, TextDelta
from .text.tokenizer_adapter import TokenizerAdapter
from .trace import Decision


@dataclass(frozen=True, slots=True)
class TextDeltaEvent:
    """New text of one row, without thinking markers.

    Attributes:
        decision: Explains text that the controller wrote; its text is empty where only a marker was written.
    """

    row: int
    text: str
    channel: Channel
    decision: Decision | None = None


EventSink = Callable[[TextDeltaEvent], None]


class StreamedRow(Protocol):
    """A row that is streamed."""

    @property
    def controller(self) -> Controller | None:
        """The controller whose last decision explains forced text, if any."""
        ...

    @property
    def state(self) -> str:
        """Where the prompt leaves the model; see `ReasoningParser`."""
        ...


class StreamEmitter:
    """A token sink that emits `TextDeltaEvent`s of whole characters.

    The texts of a channel add up to the result's `thinking` or `answer`, unless tokens were retracted after they had
    been emitted.

    Args:
        parsers: The rows' parsers, e.g. with stop strings; by default without.
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
        self.parsers = parsers or [ReasoningParser(markers, row.state) for row in rows]
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
            self._emit_forced(row, self._feed_pending(row), parser.channel)
        elif not self.codec.decode(self._pending[row]).endswith("\ufffd"):
            self._emit(row, self._feed_pending(row))

    def finish(self) -> None:
        """Emit what is held back of all rows."""
        for row in range(len(self.rows)):
            self.finish_row(row)

    def finish_row(self, row: int, thinking: str | None = None, answer: str | None = None) -> None:
        """Emit what is held back of one row; see `ReasoningParser.finish` for the arguments."""
        self._emit(row, self._feed_pending(row))
        self._emit(row, self.parsers[row].finish(thinking, answer))

    def _feed_pending(self, row: int) -> list[TextDelta]:
        text = self.codec.decode(self._pending[row])
        self._pending[row].clear()
        return self.parsers[row].feed(text) if text else []

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
