"""Splitting a model's output into thinking and answer, whole or while it is generated.

This is the only place that does so. What may still turn out to be part of a marker, of a stop string or of trailing
white space is held back, so that the deltas of a channel always add up to what `split_text` finds in the whole output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .markers import Markers
from .tokenizer_adapter import TokenizerAdapter

Channel = Literal["thinking", "answer"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one channel, without markers and without white space at the channel's start or end."""

    channel: Channel
    text: str


class ReasoningParser:
    """Splits one growing output; the text of each channel is final as soon as it is returned.

    Text before a late opening marker is returned as answer, since waiting for the marker could take forever; once the
    marker comes, that text no longer counts as part of the answer.

    Args:
        state: Where the prompt left the model: "before" the thinking, in it ("thinking"), or past it ("answer").
        stops: Strings that end the answer; `stopped` is True once one was found, and the rest is dropped.
        hide: From this string on, the answer is held back until `finish`, e.g. the start of a tool call.
    """

    def __init__(self, markers: Markers, state: str, stops: Sequence[str] = (), hide: str = "") -> None:
        self.markers, self.stops, self.hide = markers, tuple(filter(None, stops)), hide
        self.stopped = self._hidden = False
        self._state = state
        self._may_open = state == "before"
        self._held = ""
        self._sent: dict[Channel, list[str]] = {"thinking": [], "answer": []}

    @property
    def thinking(self) -> str:
        """The thinking returned so far."""
        return "".join(self._sent["thinking"])

    @property
    def answer(self) -> str:
        """The answer returned so far."""
        return "".join(self._sent["answer"])

    @property
    def channel(self) -> Channel:
        """Where the next text belongs, as far as is known."""
        return "thinking" if self._state == "thinking" else "answer"

    def feed(self, text: str) -> list[TextDelta]:
        """Add generated text; return what is now certain."""
        self._held += text
        deltas: list[TextDelta] = []
        if self._state == "before":
            self._parse_opening()
        if self._state == "answer" and self._may_open and not self.stopped:
            self._parse_late_opening(deltas)
        if self._state == "thinking":
            self._parse_thinking(deltas)
        if self._state == "answer":
            self._parse_answer(deltas)
        return deltas

    def finish(self, thinking: str | None = None, answer: str | None = None) -> list[TextDelta]:
        """Return what was held back.

        A caller may know the final thinking or answer better, e.g. because tokens were retracted, or without tool
        calls. What was already returned cannot be taken back: a channel that contradicts it gets nothing more.
        """
        deltas: list[TextDelta] = []
        if thinking is None and answer is None:
            held = "" if self.stopped or self._hidden else self._held.rstrip()
            if self._state == "before":
                held = held.lstrip()
            self._emit(self.channel, held, deltas)
            self._held = ""
            return deltas
        finals: tuple[tuple[Channel, str | None], ...] = (("thinking", thinking), ("answer", answer))
        for channel, final in finals:
            sent = "".join(self._sent[channel])
            if final is not None and final.startswith(sent):
                self._emit(channel, final[len(sent) :], deltas)
        return deltas

    def _parse_opening(self) -> None:
        """Skip the opening marker, or notice that the output does not begin with it."""
        text, marker = self._held.lstrip(), self.markers.open
        if text.startswith(marker):
            self._open(text[len(marker) :])
        elif not marker.startswith(text):
            self._state = "answer"

    def _parse_late_opening(self, deltas: list[TextDelta]) -> None:
        before, found, rest = self._held.partition(self.markers.open)
        if found and not truncate_at_stop(before, self.stops)[1]:
            if not self._hidden:
                self._emit("answer", before.rstrip(), deltas)
            self._sent["answer"].clear()
            self._open(rest)

    def _open(self, rest: str) -> None:
        self._state, self._held, self._may_open, self._hidden = "thinking", rest, False, False

    def _parse_thinking(self, deltas: list[TextDelta]) -> None:
        text, found, rest = self._held.partition(self.markers.close)
        if found:
            self._emit("thinking", text.rstrip(), deltas)
            self._state, self._held = "answer", rest
        else:
            self._held = self._emit_certain("thinking", text, (self.markers.close,), deltas)

    def _parse_answer(self, deltas: list[TextDelta]) -> None:
        if self.stopped:
            self._held = ""
            return
        if self._hidden:
            self.stopped = truncate_at_stop(self._held, self.stops)[1]
            return
        text = self._held if self._sent["answer"] else self._held.lstrip()
        text, self.stopped = truncate_at_stop(text, self.stops)
        shown, found, rest = text.partition(self.hide) if self.hide else (text, "", "")
        if self.stopped or found:
            self._emit("answer", shown.rstrip() if found else shown, deltas)
            self._held, self._hidden = rest, bool(found)
        else:
            ends = [*self.stops, self.hide, self.markers.open if self._may_open else ""]
            self._held = self._emit_certain("answer", text, list(filter(None, ends)), deltas)

    def _emit_certain(self, channel: Channel, text: str, ends: Sequence[str], deltas: list[TextDelta]) -> str:
        """Emit all but white space and beginnings of `ends` at the end of a text; return those."""
        certain = len(text)
        for end in ends:
            size = next((n for n in range(min(len(end) - 1, len(text)), 0, -1) if text.endswith(end[:n])), 0)
            certain = min(certain, len(text) - size)
        certain = len(text[:certain].rstrip())
        self._emit(channel, text[:certain], deltas)
        return text[certain:]

    def _emit(self, channel: Channel, text: str, deltas: list[TextDelta]) -> None:
        if not self._sent[channel]:
            text = text.lstrip()
        if text:
            self._sent[channel].append(text)
            deltas.append(TextDelta(channel, text))


@dataclass(frozen=True, slots=True)
class ReasoningParts:
    """Thinking and answer texts without markers, and how many tokens belong to each (the marker to the thinking)."""

    thinking: str
    answer: str
    thinking_tokens: int
    answer_tokens: int


def split_text(text: str, markers: Markers, state: str) -> tuple[str, str]:
    """Split a whole output into thinking and answer; see `ReasoningParser` for `state`."""
    parser = ReasoningParser(markers, state)
    parser.feed(text)
    parser.finish()
    return parser.thinking, parser.answer


def split_reasoning(ids: Sequence[int], codec: TokenizerAdapter, markers: Markers, state: str) -> ReasoningParts:
    """Split the tokens of a whole output; see `ReasoningParser` for `state`."""
    text = codec.decode(ids)
    thinking, answer = split_text(text, markers, state)
    if state == "answer" or (state == "before" and markers.open not in text):
        return ReasoningParts(thinking, answer, 0, len(ids))
    body = text if state == "thinking" else text.split(markers.open, 1)[1]
    closed = markers.close in body
    count = _shortest_prefix_with(ids, codec, markers.close) if closed else len(ids)
    return ReasoningParts(thinking, answer, count, len(ids) - count)


def _shortest_prefix_with(ids: Sequence[int], codec: TokenizerAdapter, marker: str) -> int:
    """Length of the shortest prefix of `ids` whose text contains `marker` (binary search: containment only grows)."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if marker in codec.decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def truncate_at_stop(answer: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Cut an answer at its first stop string; return it and whether there was one."""
    positions = [position for stop in stops if stop and (position := answer.find(stop)) >= 0]
    return (answer[: min(positions)].rstrip(), True) if positions else (answer, False)
