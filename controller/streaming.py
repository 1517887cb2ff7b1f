"""Turning token batches of an engine into readable events while a generation runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .controller import Controller
from .text.markers import Markers
from .text.tokenizer_adapter import TokenizerAdapter
from .trace import Decision


@dataclass(frozen=True, slots=True)
class TextDeltaEvent:
    """A piece of new text of one row; `decision` explains a forced piece."""

    row: int
    text: str
    part: str  # "thinking" or "answer"
    decision: Decision | None = None


EventSink = Callable[[TextDeltaEvent], None]


class StreamedRow(Protocol):
    """A row whose events are told: its controller, if any, and where its prompt left the model."""

    @property
    def controller(self) -> Controller | None:
        """Whose last decision explains what is forced."""
        ...

    @property
    def state(self) -> str:
        """See `prompts.RenderedPrompt`."""
        ...


class StreamEmitter:
    """An engine's token sink that emits `TextDeltaEvent`s of whole characters, split where thinking begins and ends.

    Before a model opens its thinking, its text counts as answer. Tokens taken back are not un-said.
    """

    def __init__(
        self,
        codec: TokenizerAdapter,
        markers: Markers,
        rows: Sequence[StreamedRow],
        emit: EventSink,
    ) -> None:
        self.codec, self.markers, self.rows, self.emit = codec, markers, rows, emit
        self._pending: list[list[int]] = [[] for _ in rows]
        self._tail = ["" for _ in rows]
        self._state: dict[int, str] = {}  # noted when a row begins: until then its prompt may not be settled

    def __call__(self, row: int, tokens: Sequence[int], forced: bool) -> None:
        """See `engines.base.TokenSink`."""
        self._state.setdefault(row, self.rows[row].state)
        if forced:
            self._flush(row)
        self._pending[row].extend(tokens)
        text = self.codec.decode(self._pending[row])
        if text.endswith("\ufffd") and not forced:
            return
        self._pending[row].clear()
        controller = self.rows[row].controller
        taken = reversed(controller.decisions) if forced and controller else ()
        self._say(row, text, next((decision for decision in taken if decision.text), None))

    def finish(self) -> None:
        """Emit what is left of characters that never became whole."""
        for row in self._state:
            self._flush(row)

    def _flush(self, row: int) -> None:
        text = self.codec.decode(self._pending[row])
        self._pending[row].clear()
        self._say(row, text, None)

    def _say(self, row: int, text: str, decision: Decision | None) -> None:
        """Emit a text in parts: a marker ends the part it stands in; what one decision forced stays whole."""
        marker = {"before": self.markers.open, "thinking": self.markers.close}.get(self._state[row])
        seen = self._tail[row] + text
        if marker is not None and marker in seen:
            cut = max(0, seen.index(marker) + len(marker) - len(self._tail[row])) if decision is None else len(text)
            self._emit(row, text[:cut], decision)
            self._state[row] = "thinking" if self._state[row] == "before" else "answer"
            self._tail[row] = ""
            self._say(row, text[cut:], decision)
            return
        self._tail[row] = seen[-64:]
        self._emit(row, text, decision)

    def _emit(self, row: int, text: str, decision: Decision | None) -> None:
        if text:
            self.emit(TextDeltaEvent(row, text, "thinking" if self._state[row] == "thinking" else "answer", decision))
