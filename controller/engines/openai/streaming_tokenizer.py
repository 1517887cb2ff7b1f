"""Token ids of a text that arrives in pieces, for servers that tell no ids.

Tokenizers split a text into words and know nothing of one in another, so that only the last word can still become other
tokens, or the beginning of an added token. The text so far is tokenised with each piece, and all before that is given
out. What was given out stands: should the tokenizer come to see it otherwise, what follows is tokenised on its own, so
that the text is right in any case.
"""

from __future__ import annotations

from typing import Any

from ....errors import CapabilityError

_MOST = 256
"""Tokens of which the text is tokenised anew with each piece; then it starts from what was not given out."""
_HELD = 16
"""Most tokens that wait for the end of their word: some scripts, and some tokenizers, put no ends to words."""


class StreamingTokenizer:
    """One stream; raises CapabilityError for a tokenizer that cannot say where in a text its tokens stand."""

    def __init__(self, tokenizer: Any) -> None:
        check_offsets(tokenizer)
        self.tokenizer = tokenizer
        self._beginnings = {text[:size] for text in tokenizer.get_added_vocab() for size in range(1, len(text))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._text = ""  # since the last new start
        self._given: list[int] = []  # ids given out of it
        self._end = 0  # characters of it that they stand for
        self._before: list[int] = []  # its ids before the last piece came

    def add(self, piece: str, last: bool = False) -> tuple[int, ...]:
        """Take in a piece, perhaps the last one, and give out the ids that are settled."""
        self._text += piece
        if len(self._given) > _MOST:
            self._start_anew()
        found = self._encode()
        if found["input_ids"][: len(self._given)] != self._given:
            self._start_anew()
            found = self._encode()
        ids, places, known = found["input_ids"], found["offset_mapping"], len(self._given)
        size = len(ids) if last else self._settled(ids, places, found.word_ids())
        self._before = ids
        if size <= known:
            return ()
        self._given, self._end = ids[:size], places[size - 1][1]
        return tuple(ids[known:size])

    def _settled(self, ids: list[int], places: list[tuple[int, int]], words: list[int | None]) -> int:
        """How many of the ids no further text can change."""
        same, most = 0, min(len(self._before), len(ids) - _HELD)
        while same < most and ids[same] == self._before[same]:
            same += 1
        size = max(same, len(ids) - 1)
        while size > same and words[size - 1] == words[-1]:
            size -= 1
        end = len(self._text) - self._begun()
        while size > 0 and (places[size - 1][1] > end or places[size][0] < places[size - 1][1]):
            size -= 1  # not into what may be an added token, nor into a character of several tokens
        return size

    def _begun(self) -> int:
        """How many of the last characters may be the beginning of an added token."""
        sizes = range(min(self._longest, len(self._text)), 0, -1)
        return next((size for size in sizes if self._text[-size:] in self._beginnings), 0)

    def _start_anew(self) -> None:
        self._text = self._text[self._end :]
        self._given, self._end, self._before = [], 0, []

    def _encode(self) -> Any:
        return self.tokenizer(self._text, add_special_tokens=False, return_offsets_mapping=True)


def check_offsets(tokenizer: Any) -> None:
    """Raise CapabilityError for a tokenizer that keeps no offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise CapabilityError(
            f"the server tells no token ids, and {type(tokenizer).__name__} cannot find them in its text; "
            "use a server that does (vLLM), or a model with a fast tokenizer"
        )
