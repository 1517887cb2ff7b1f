"""A small reversible tokenizer for tests of policies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class WordTokenizer:
    """A tiny reversible tokenizer (words, digits, white space, signs, `<think>` markers) for tests of policies."""

    eos_token_id: int | None = None

    chat_template = None
    _PIECES = re.compile(r"</?think>|\n\n|\w+|\s|[^\w\s]")

    def __init__(self) -> None:
        self.vocabulary: list[str] = ["<think>", "</think>"]
        self._ids = {"<think>": 0, "</think>": 1}

    def get_added_vocab(self) -> dict[str, int]:
        """The markers."""
        return {"<think>": 0, "</think>": 1}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Ids of a text; new pieces join the vocabulary."""
        ids = []
        for piece in self._PIECES.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self.vocabulary)
                self.vocabulary.append(piece)
            ids.append(self._ids[piece])
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of ids."""
        return "".join(self.vocabulary[i] for i in ids)
