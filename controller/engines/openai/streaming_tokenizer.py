"""Token ids of a text that arrives in pieces, for servers that return no ids.

Tokenizers split a text into words and treat each word by itself. So only the last word can still become other tokens,
or be the beginning of an added token. With each piece the text so far is tokenized, and the ids of everything before
the last word are returned. They are final: should the tokenizer later see them differently, the rest is tokenized on
its own, so that the text is right in any case.
"""

from __future__ import annotations

from typing import Any

from ....errors import CapabilityError

_MAX_TOKENS = 256
"""Tokens of the text that is tokenized again with each piece; beyond that it restarts after the returned ids."""
_MAX_HELD = 16
"""Most tokens held back for the end of their word: some scripts, and some tokenizers, do not end words."""


class StreamingTokenizer:
    """Tokenizes one stream; raises CapabilityError for a tokenizer that has no offsets."""

    def __init__(self, tokenizer: Any) -> None:
        check_offsets(tokenizer)
        self.tokenizer = tokenizer
        self._prefixes = {text[:size] for text in tokenizer.get_added_vocab() for size in range(1, len(text))}
        self._longest = max(map(len, self._prefixes), default=0)
        self._text = ""  # since the last restart
        self._returned: list[int] = []  # ids of it that were returned
        self._end = 0  # its characters that they stand for
        self._previous: list[int] = []  # its ids before the latest piece

    def add(self, piece: str, last: bool = False) -> tuple[int, ...]:
        """Append a piece and return the ids that are now final; `last` makes all of them final."""
        self._text += piece
        if len(self._returned) > _MAX_TOKENS:
            self._restart()
        encoding = self._encode()
        if encoding["input_ids"][: len(self._returned)] != self._returned:
            self._restart()
            encoding = self._encode()
        ids, offsets, known = encoding["input_ids"], encoding["offset_mapping"], len(self._returned)
        size = len(ids) if last else self._count_final(ids, offsets, encoding.word_ids())
        self._previous = ids
        if size <= known:
            return ()
        self._returned, self._end = ids[:size], offsets[size - 1][1]
        return tuple(ids[known:size])

    def _count_final(self, ids: list[int], offsets: list[tuple[int, int]], words: list[int | None]) -> int:
        """How many of the ids no further text can change."""
        same, limit = 0, min(len(self._previous), len(ids) - _MAX_HELD)
        while same < limit and ids[same] == self._previous[same]:
            same += 1
        size = max(same, len(ids) - 1)
        while size > same and words[size - 1] == words[-1]:
            size -= 1
        end = len(self._text) - self._partial_added_token()
        while size > 0 and (offsets[size - 1][1] > end or offsets[size][0] < offsets[size - 1][1]):
            size -= 1  # neither within a possible added token nor within a character of several tokens
        return size

    def _partial_added_token(self) -> int:
        """How many of the last characters may be the beginning of an added token."""
        sizes = range(min(self._longest, len(self._text)), 0, -1)
        return next((size for size in sizes if self._text[-size:] in self._prefixes), 0)

    def _restart(self) -> None:
        self._text = self._text[self._end :]
        self._returned, self._end, self._previous = [], 0, []

    def _encode(self) -> Any:
        return self.tokenizer(self._text, add_special_tokens=False, return_offsets_mapping=True)


def check_offsets(tokenizer: Any) -> None:
    """Raise CapabilityError for a tokenizer without offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise CapabilityError(
            f"the server returns no token ids, and {type(tokenizer).__name__} cannot find them in text; use a server "
            "that returns ids (vLLM), or a model with a fast tokenizer",
            code="slow_tokenizer",
        )
