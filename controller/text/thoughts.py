"""The thinking of one sequence as it grows, with what must not be cut, and its answer, in which it may think again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ..types import Signals
from .cues import LANGUAGES, either
from .markers import MarkerMatcher, Markers, paragraph_separator
from .reasoning_parser import opens_thinking
from .regions import TOOL_CALL, ProtectedRegions
from .tokenizer_adapter import TokenFlags, TokenizerAdapter, word_pattern
from .tool_calls import CALL_ENDS, CALL_STARTS

REFLECTION_CUES = LANGUAGES[0].reflections + LANGUAGES[1].reflections
"""How reflective thoughts begin (TrimR, Speculative Thinking and VSRM use such lists); matched as whole words."""
_CUE = word_pattern(REFLECTION_CUES)
_TAIL = 400
_BEGUN = tuple({start[:size] for start in CALL_STARTS for size in range(1, len(start))})
_LONGEST_START = 40  # tokens, of what begins a call
_WINDOW = 128
"""Tokens after a forced close within which deliberation is looked for; later, an answer may quote anything."""
_CUE_TOKENS = 8  # tokens of a sentence in which a cue must be complete
_SENTENCE_END = TokenFlags.SENTENCE | TokenFlags.NEWLINE | TokenFlags.BLANK
_DELIBERATES = re.compile(rf"\W*(?:{either('deliberates')})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Thought:
    """Thinking between two boundaries."""

    text: str
    start: int  # first token, counted in thinking tokens; `end` is the one after the last
    end: int
    reflective: bool  # whether it opens with a reflection cue


class ThinkingState:
    """The thinking so far; grows token by token and decodes only at boundaries."""

    def __init__(self, codec: TokenizerAdapter) -> None:
        self.codec = codec
        self.ids: list[int] = []
        self.signals: list[Signals | None] = []  # as long as `ids` where an engine reports them, else empty
        self.boundary = "token"
        self._thoughts: list[Thought] = []
        self._ended: list[tuple[int, int]] = []  # where later thoughts begin and end that no policy has asked for yet
        self._start = self._retractable_from = 0
        self._flags = codec.flags
        self._calls = False  # a tool call has begun
        self._suspect: int | None = None  # a token that may have begun one
        self._risky = False  # a region may be open, or something that can open one has come since the last scan
        self._regions, self._scanned = ProtectedRegions(), 0
        self._decoded = (-1, 0, "")  # from where to where, and the text: several readers begin at the same place

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> str:
        """All thinking so far."""
        return self.codec.decode(self.ids)

    def tail(self, tokens: int = _TAIL) -> str:
        """Text of the last tokens."""
        return self.codec.decode(self.ids[-tokens:])

    def text_from(self, start: int) -> str:
        """What the model wrote itself from token `start` on, without anything up to the last forced token."""
        return self._decode_from(max(start, self._retractable_from))

    @property
    def thoughts(self) -> list[Thought]:
        """The thoughts that have ended, without blank ones."""
        for start, end in self._ended:
            text = self.codec.decode(self.ids[start:end])
            if text.strip():
                self._thoughts.append(Thought(text, start, end, bool(_CUE.match(text))))
        self._ended.clear()
        return self._thoughts

    @property
    def ends_line(self) -> bool:
        """Whether the last token may have ended a line, or there is none yet."""
        return len(self.ids) == self._start or bool(self._flags[self.ids[-1]] & TokenFlags.NEWLINE)

    @property
    def separator(self) -> str:
        """What to write before a new paragraph here."""
        _, end, text = self._decoded
        return paragraph_separator(text if end == len(self.ids) and len(text) > 1 else self.tail(4))

    @property
    def protected(self) -> str | None:
        """The kind of region that is open at the end, or None; what was scanned before is not scanned again."""
        if not self._risky or not self.ids:
            return None
        self._regions.feed(self._decode_from(self._scanned))
        self._scanned = len(self.ids)
        open_region = self._regions.open
        self._risky = not self._regions.settled or bool(self._flags[self.ids[-1]] & TokenFlags.FENCE)
        return open_region

    @property
    def ends_in_call(self) -> bool:
        """Whether a tool call is open, or the text ends with one."""
        return self.may_call and (self.protected == TOOL_CALL or self.tail(16).rstrip().endswith(CALL_ENDS))

    def add(self, token: int, signals: Signals | None = None) -> None:
        """Append a sampled token; sets `boundary` to what it ended: `token`, `sentence` or `thought`."""
        if signals is not None:
            self.signals += [None] * (len(self.ids) - len(self.signals))
            self.signals.append(signals)
        flags = self._flags[token]
        if not flags & ~TokenFlags.DIGIT:
            self.ids.append(token)
            self.boundary = "token"
        else:
            self._add_flagged(token, flags)

    def _add_flagged(self, token: int, flags: int) -> None:
        ended = flags & TokenFlags.BLANK or (flags & TokenFlags.NEWLINE and self.ends_line)
        decimal = flags & TokenFlags.POINT and self.ids and self._flags[self.ids[-1]] & TokenFlags.DIGIT
        self.ids.append(token)
        if flags & TokenFlags.FENCE:
            self._risky = True
            if flags & TokenFlags.CALL and self._suspect is None:
                self._suspect = len(self.ids) - 1
        if ended and len(self.ids) - self._start > 1:
            self._end_thought(len(self.ids))
            self.boundary = "thought"
        else:
            ends = flags & (TokenFlags.SENTENCE | TokenFlags.NEWLINE) and not decimal
            self.boundary = "sentence" if ends else "token"

    @property
    def may_call(self) -> bool:
        """Whether a tool call has begun, or the last tokens may begin one."""
        if not self._calls and self._suspect is not None:
            text = self.codec.decode(self.ids[self._suspect :])
            self._calls = any(map(text.__contains__, CALL_STARTS))
            begins = text.rstrip("\ufffd").endswith(_BEGUN)
            self._suspect = max(self._suspect, len(self.ids) - _LONGEST_START) if begins else None
        return self._calls or self._suspect is not None

    def extend(self, tokens: Sequence[int], signals: Sequence[Signals | None] = ()) -> None:
        """Append sampled tokens; `signals` is empty or has one for each.

        No token begins a tool call or is an empty line of its own.
        """
        if signals:
            self.signals += [None] * (len(self.ids) - len(self.signals))
            self.signals += signals
        for end, token in enumerate(tokens, len(self.ids) + 1):
            flags = self._flags[token]
            if flags & TokenFlags.FENCE:
                self._risky = True
            elif flags & TokenFlags.BLANK and end - self._start > 1:
                self._end_thought(end)
        self.ids.extend(tokens)
        self.boundary = "token"

    def retractable(self, count: int) -> int:
        """How many of the last `count` tokens may be dropped: those after the last forced one."""
        return min(count, len(self.ids) - self._retractable_from)

    def retract(self, count: int) -> int:
        """Drop the last `count` tokens, as far as they may be dropped; return how many were."""
        count, thoughts = self.retractable(count), self.thoughts
        del self.ids[len(self.ids) - count :]
        del self.signals[len(self.ids) :]
        self._decoded = (-1, 0, "")
        self._calls, self._suspect = False, 0
        while thoughts and thoughts[-1].end > len(self.ids):
            self._start = thoughts.pop().start
        if self._scanned > len(self.ids):
            self._regions, self._scanned, self._risky = ProtectedRegions(), 0, True
        return count

    def add_forced(self, tokens: Sequence[int]) -> None:
        """Append forced tokens; they end the current thought and belong to none."""
        if len(self.ids) > self._start:
            self._end_thought(len(self.ids))
        self.ids.extend(tokens)
        self._start = self._retractable_from = len(self.ids)
        self._risky = True

    def _decode_from(self, start: int) -> str:
        if self._decoded[:2] != (start, len(self.ids)):
            self._decoded = start, len(self.ids), self.codec.decode(self.ids[start:])
        return self._decoded[2]

    def _end_thought(self, end: int) -> None:
        self._ended.append((self._start, end))
        self._start = end


class ThinksAgain(Enum):
    """How a model thinks again in its answer."""

    OPENS = "opened its thinking again"
    CLOSES = "closed its thinking once more"
    DELIBERATES = "went on thinking in its answer"


class AnswerWatch:
    """The answer of one sequence; after a `forced` closing, a second one and thinking on are noticed too.

    An answer that `quotes` may have the opening marker in the middle of a line, or in code.
    """

    def __init__(self, codec: TokenizerAdapter, markers: Markers, forced: bool, quotes: bool = True) -> None:
        self.codec, self.forced, self.quotes = codec, forced, quotes
        self.ids: list[int] = []
        self._open, self._close = MarkerMatcher(codec, markers.open), MarkerMatcher(codec, markers.close)
        self._sentence = 0  # where the present sentence begins
        self._read, self._seen = 0, ""  # how far the answer was read for quotes, and what counts of that

    def add(self, token: int) -> ThinksAgain | None:
        """Add a token; return how the model thinks again, if it does."""
        self.ids.append(token)
        if self._open.completes(token) and not (self.quotes and self._is_quoted()):
            return ThinksAgain.OPENS
        if not self.forced:
            return None
        if self._close.completes(token):
            return ThinksAgain.CLOSES
        return ThinksAgain.DELIBERATES if len(self.ids) <= _WINDOW and self._deliberates(token) else None

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens that end no marker, where nothing else counts."""
        self.ids.extend(tokens)
        self._open.skip(tokens)
        self._close.skip(tokens)

    @property
    def reads_words(self) -> bool:
        """Whether any next token counts, and not only markers."""
        return self.forced and len(self.ids) < _WINDOW

    def opening(self) -> list[int]:
        """The tokens of the opening marker, with which the answer ends now."""
        return self.ids[-self._open.size(self.ids) :]

    def _is_quoted(self) -> bool:
        end = len(self.ids) - self._open.size(self.ids)
        text = self._seen + self.codec.decode(self.ids[self._read : end])
        last_line = text.rpartition("\n")[2].replace("```", "")
        self._read, self._seen = end, "```" * (text.count("```") % 2) + last_line[-_TAIL:]
        return not opens_thinking(text)

    def _deliberates(self, token: int) -> bool:
        sentence = self.ids[self._sentence :]
        if self.codec.flags[token] & _SENTENCE_END:
            self._sentence = len(self.ids)
        return len(sentence) <= _CUE_TOKENS and bool(_DELIBERATES.match(self.codec.decode(sentence)))
