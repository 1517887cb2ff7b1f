"""Turning token batches of an engine into readable events while a generation runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .core import Controller
from .markers import Markers
from .text import Codec
from .trace import Decision


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of new text of one row; `decision` explains a forced piece."""

    row: int
    text: str
    part: str  # "thinking" or "answer"
    decision: Decision | None = None


EventSink = Callable[[Event], None]


class Narrator:
    """An engine's token sink that emits `Event`s with whole characters."""

    def __init__(
        self,
        codec: Codec,
        markers: Markers,
        controllers: Sequence[Controller | None],
        states: Sequence[str],
        emit: EventSink,
    ) -> None:
        self.codec, self.markers, self.controllers, self.emit = codec, markers, controllers, emit
        self._pending: list[list[int]] = [[] for _ in states]
        self._tail = ["" for _ in states]
        self._part = ["answer" if s == "answer" else "thinking" for s in states]

    def __call__(self, row: int, tokens: Sequence[int], forced: bool) -> None:
        """See `engines.base.TokenSink`."""
        pending = self._pending[row]
        pending.extend(tokens)
        text = self.codec.decode(pending)
        if text.endswith("�") and not forced:
            return
        pending.clear()
        controller = self.controllers[row]
        decision = controller.decisions[-1] if forced and controller and controller.decisions else None
        tail = self._tail[row] + text
        self._tail[row] = tail[-64:]
        part = self._part[row]
        if text:
            self.emit(Event(row, text, part, decision))
        if part == "thinking" and self.markers.close in tail:
            self._part[row] = "answer"
