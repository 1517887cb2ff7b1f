"""Follows an answer, and notices that the model thinks again: a forced close does not stop every model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from .text.cues import either
from .text.markers import MarkerMatcher, Markers
from .text.reasoning_parser import opens_thinking
from .text.tokenizer_adapter import TokenFlags, TokenizerAdapter

WINDOW = 128
"""Tokens after a forced close within which deliberation is looked for; later, an answer may quote anything."""
_CUE_TOKENS = 8  # tokens of a sentence in which a cue must be complete
_SENTENCE_END = TokenFlags.SENTENCE | TokenFlags.NEWLINE | TokenFlags.BLANK
_DELIBERATES = re.compile(rf"\W*(?:{either('deliberates')})", re.IGNORECASE)


class ThinksAgain(Enum):
    """How a model thinks again in its answer."""

    OPENS = "opened its thinking again"
    CLOSES = "closed its thinking once more"
    DELIBERATES = "went on thinking in its answer"


class AnswerWatch:
    """The answer of one sequence; after a `forced` closing, a second one and thinking on are noticed too."""

    def __init__(self, codec: TokenizerAdapter, markers: Markers, forced: bool) -> None:
        self.codec, self.forced = codec, forced
        self.ids: list[int] = []
        self._open, self._close = MarkerMatcher(codec, markers.open), MarkerMatcher(codec, markers.close)
        self._sentence = 0  # where the present sentence begins

    def add(self, token: int) -> ThinksAgain | None:
        """Add a token; return how the model thinks again, if it does."""
        self.ids.append(token)
        if self._open.completes(token) and opens_thinking(self.codec.decode(self.ids[: -self._open.size(self.ids)])):
            return ThinksAgain.OPENS
        if not self.forced:
            return None
        if self._close.completes(token):
            return ThinksAgain.CLOSES
        return ThinksAgain.DELIBERATES if len(self.ids) <= WINDOW and self._deliberates(token) else None

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens that end no marker, where nothing else counts."""
        self.ids.extend(tokens)
        self._open.skip(tokens)
        self._close.skip(tokens)

    @property
    def reads_words(self) -> bool:
        """Whether any next token counts, and not only markers."""
        return self.forced and len(self.ids) < WINDOW

    def opening(self) -> list[int]:
        """The tokens of the opening marker, with which the answer ends now."""
        return self.ids[-self._open.size(self.ids) :]

    def _deliberates(self, token: int) -> bool:
        sentence = self.ids[self._sentence :]
        if self.codec.flags[token] & _SENTENCE_END:
            self._sentence = len(self.ids)
        return len(sentence) <= _CUE_TOKENS and bool(_DELIBERATES.match(self.codec.decode(sentence)))
