"""Noticing a marker among the tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer_adapter import TokenizerAdapter

_TAIL = 16


class MarkerMatcher:
    """Notices where a marker is complete, which may be several tokens long and fused with what follows."""

    __slots__ = ("_codec", "_marker", "_recent", "id")

    def __init__(self, codec: TokenizerAdapter, marker: str) -> None:
        self._codec, self._marker = codec, marker
        found = codec.tokenizer.get_added_vocab().get(marker)
        self.id = None if found is None else int(found)  # of a marker that is one added token
        self._recent: list[int] = []

    def completes(self, token: int) -> bool:
        """Whether this next token completes the marker."""
        if self.id is not None:
            return token == self.id
        self._recent.append(token)
        if not self._codec.holds(token, self._marker[-1]):
            return False
        del self._recent[:-_TAIL]
        if self._marker not in self._codec.decode(self._recent):
            return False
        self._recent.clear()
        return True

    def size(self, ids: Sequence[int]) -> int:
        """How many of the last of these tokens, which the marker completes, it began in."""
        if self.id is not None:
            return 1
        last = ids[-_TAIL - 1 :]
        return next((n for n in range(1, len(last)) if self._marker in self._codec.decode(last[-n:])), len(last))
