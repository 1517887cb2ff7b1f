"""Splitting a model's output into thinking and answer, whole or while it is generated.

This is the only place that does so. What may still turn out to be part of a marker, of a stop string or of trailing
white space is held back, so that the deltas of a channel always add up to what `split_text` finds in the whole output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .cues import DELIBERATION_WORDS
from .markers import HARMONY_TURN, MarkerDecoder, Markers, unmark
from .tokenizer_adapter import TokenizerAdapter

Channel = Literal["thinking", "answer"]
_FIRST_WORD = re.compile(r"\W*(\w*)")
_HELD_BACK = 32
"""Characters of an answer after a forced close that are held back at most, if the model may be thinking on."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one channel, without markers and without white space at the channel's start or end."""

    channel: Channel
    text: str


def opens_thinking(answer: str) -> bool:
    """Whether an opening marker after this much of the answer begins another block of thinking, and is not quoted."""
    answer = answer.removesuffix(HARMONY_TURN)
    return (not answer.strip() or answer.endswith("\n")) and answer.count("```") % 2 == 0


def _may_deliberate(text: str) -> bool:
    """Whether this beginning of an answer may turn out to go on thinking."""
    word = _FIRST_WORD.match(text.lower())[1]  # type: ignore[index]  # it matches any text
    return len(text) < _HELD_BACK and any(cue.startswith(word) or word.startswith(cue) for cue in DELIBERATION_WORDS)


class ReasoningParser:
    """Splits one growing output; the text of each channel is final as soon as it is returned.

    A model may think in several blocks, and write before the first one; see `opens_thinking` for where one may begin.

    Args:
        state: Where the prompt left the model: "before" the thinking, in it ("thinking"), or past it ("answer").
        stops: Strings that end the answer; `stopped` is True once one was found, and the rest is dropped.
        hide: From this string on, the answer is held back until `finish`, e.g. the start of a tool call.
        codec: Of tokens, if they are fed. A marker that is a token of its own then counts only as that token: spelled
            out, it is text, here as in the controller.

    Attributes:
        forced: The thinking was closed for the model. It may think on and close once more; what stands before the last
            closing marker is thinking then.
        blocks: Start and end of each block of thinking in the text fed so far, markers included; the last may be open.
    """

    def __init__(
        self,
        markers: Markers,
        state: str,
        stops: Sequence[str] = (),
        hide: str = "",
        codec: TokenizerAdapter | None = None,
    ) -> None:
        self.markers, self.stops, self.hide = markers, tuple(filter(None, stops)), hide
        self._decoder = None if codec is None else MarkerDecoder(codec, markers)
        self._open_marker, self._close_marker = (self._decoder or markers).open, (self._decoder or markers).close
        self.stopped = self._hidden = self.forced = False
        self.blocks: list[tuple[int, int | None]] = [(0, None)] if state == "thinking" else []
        self._state = state
        self._may_open = state != "answer"
        self._held = ""
        self._fed = 0
        self._sent: dict[Channel, list[str]] = {"thinking": [], "answer": []}
        self._block: dict[Channel, int] = {"thinking": 0, "answer": 0}  # where the present block begins in `_sent`

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

    def feed_tokens(self, ids: Sequence[int]) -> list[TextDelta]:
        """Add generated tokens of whole characters; return what is now certain."""
        assert self._decoder is not None
        return self.feed(self._decoder.decode(ids))

    def feed(self, text: str) -> list[TextDelta]:
        """Add generated text; return what is now certain."""
        self._held += text
        self._fed += len(text)
        deltas: list[TextDelta] = []
        if self._state == "before":
            self._parse_opening()
        while self._state != "before":
            if self._state == "thinking" and not self._parse_thinking(deltas):
                break
            if not self._parse_marker(deltas):
                self._parse_answer(deltas)
                break
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
        text, marker = self._held.lstrip(), self._open_marker
        if text.startswith(marker):
            self._open(0, text[len(marker) :])
        elif not marker.startswith(text):
            self._state = "answer"

    def _open(self, start: int, rest: str) -> None:
        self.blocks.append((start, None))
        self._state, self._held = "thinking", rest
        self._begin_block("thinking")

    def _close(self, rest: str) -> None:
        self.blocks[-1] = self.blocks[-1][0], self._fed - len(rest)
        self._state, self._held = "answer", rest
        self._begin_block("answer")

    def _begin_block(self, channel: Channel) -> None:
        self._block[channel] = len(self._sent[channel])

    def _parse_thinking(self, deltas: list[TextDelta]) -> bool:
        """Return what is certain of the thinking; whether it has ended."""
        text, found, rest = self._held.partition(self._close_marker)
        if found:
            self._emit("thinking", text.rstrip(), deltas)
            self._close(rest)
        else:
            self._held = self._emit_certain("thinking", text, (self._close_marker,), deltas)
        return bool(found)

    @property
    def _answer_markers(self) -> list[str]:
        """The markers that may still come in the answer."""
        if self.stopped or self._hidden or not self._may_open:
            return []
        closing = [self._close_marker] if self.forced and self.blocks else []
        return [marker for marker in (self._open_marker, *closing) if marker]

    def _parse_marker(self, deltas: list[TextDelta]) -> bool:
        """Find a marker that ends the answer so far, or shows that it was thinking; whether there is one."""
        start = 0
        while found := [(at, one) for one in self._answer_markers if (at := self._held.find(one, start)) >= 0]:
            at, marker = min(found)
            before, rest = self._held[:at], self._held[at + len(marker) :]
            if truncate_at_stop(before, self.stops)[1]:
                return False
            answer = "".join(self._sent["answer"][self._block["answer"] :])
            if marker != self._open_marker:
                self._reclassify(answer + before)
                self._close(rest)
                return True
            if opens_thinking(answer + before):
                self._emit("answer", before.removesuffix(HARMONY_TURN).rstrip(), deltas)
                self._open(self._fed - len(rest) - len(marker), rest)
                return True
            start = at + len(marker)
        return False

    def _reclassify(self, text: str) -> None:
        """Take what was answer since the last closing marker for thinking."""
        del self._sent["answer"][self._block["answer"] :]
        self._begin_block("thinking")
        self._emit("thinking", text.rstrip(), [])

    def _parse_answer(self, deltas: list[TextDelta]) -> None:
        if self.stopped:
            self._held = ""
            return
        if self._hidden:
            self.stopped = truncate_at_stop(self._held, self.stops)[1]
            return
        text = self._held if self._begun("answer") else self._held.lstrip()
        if (header := self.markers.answer_header) and not self._begun("answer"):
            if header.startswith(text):
                self._held = text
                return
            text = text.removeprefix(header)
        text, self.stopped = truncate_at_stop(text, self.stops)
        if self.forced and not self.stopped and not self._begun("answer") and _may_deliberate(text):
            self._held = text
            return
        shown, found, rest = text.partition(self.hide) if self.hide else (text, "", "")
        if self.stopped or found:
            self._emit("answer", shown.rstrip() if found else shown, deltas)
            self._held, self._hidden = rest, bool(found)
        else:
            ends = [*self.stops, self.hide, *self._answer_markers]
            ends += [f"{HARMONY_TURN}{self._open_marker}"] if self.markers.answer_header else []
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

    def _begun(self, channel: Channel) -> bool:
        """Whether the present block of a channel has text."""
        return len(self._sent[channel]) > self._block[channel]

    def _emit(self, channel: Channel, text: str, deltas: list[TextDelta]) -> None:
        text = unmark(text)
        if not self._begun(channel):
            text = text.lstrip()
            text = f"\n\n{text}" if text and self._sent[channel] else text
        if text:
            self._sent[channel].append(text)
            deltas.append(TextDelta(channel, text))


@dataclass(frozen=True, slots=True)
class ReasoningParts:
    """Thinking and answer texts without markers, and how many tokens belong to each (the markers to the thinking)."""

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


def split_reasoning(
    ids: Sequence[int], codec: TokenizerAdapter, markers: Markers, state: str, forced: bool = False
) -> ReasoningParts:
    """Split the tokens of a whole output; see `ReasoningParser` for `state` and `forced`."""
    parser, decoder = ReasoningParser(markers, state, codec=codec), MarkerDecoder(codec, markers)
    parser.forced = forced
    parser.feed_tokens(ids)
    blocks = list(parser.blocks)
    parser.finish()
    count = 0
    for start, end in blocks:
        last = len(ids) if end is None else _count_tokens(ids, decoder, end)
        count += last - (_count_tokens(ids, decoder, start) if start else 0)
    return ReasoningParts(parser.thinking, parser.answer, count, len(ids) - count)


def _count_tokens(ids: Sequence[int], decoder: MarkerDecoder, size: int) -> int:
    """Length of the shortest prefix of `ids` whose text has at least `size` characters (binary search)."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(decoder.decode(ids[:middle])) >= size:
            high = middle
        else:
            low = middle + 1
    return low


def truncate_at_stop(answer: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Cut an answer at its first stop string; return it and whether there was one."""
    positions = [position for stop in stops if stop and (position := answer.find(stop)) >= 0]
    return (answer[: min(positions)].rstrip(), True) if positions else (answer, False)
