"""The tokenizers of replays: that of a model, or one of our own that needs no file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PIECE = re.compile(r"\n+| ?[^\W\d_]{1,16}|\d{1,3}| ?[^\w\s]{1,3}|[^\S\n]+|_+| |.", re.DOTALL)


class PieceTokenizer:
    """Splits a text into pieces of about four characters, much as models' tokenizers do, for the controller."""

    name = "pieces"
    eos_token_id: int | None = None
    chat_template = None

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pieces: list[str] = []

    def get_added_vocab(self) -> dict[str, int]:
        """No token stands for more than its text."""
        return {}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Ids of a text."""
        ids = []
        for piece in _PIECE.findall(text):
            if (known := self._ids.get(piece)) is None:
                known = self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            ids.append(known)
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of ids."""
        return "".join(self._pieces[token] for token in ids)


def load_tokenizer(source: Path | None) -> PieceTokenizer | PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.json`, or of the folder that holds one; None for our own. Raises OptionError."""
    if source is None:
        return PieceTokenizer()
    file = source / "tokenizer.json" if source.is_dir() else source
    if not file.is_file():
        raise OptionError(
            f"--tokenizer {source}: file {file} not found; accepted: a tokenizer.json, or a folder with one",
            code="no_such_file",
        )
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:  # the tokenizers library raises bare ones
        raise OptionError(
            f"--tokenizer {file} cannot be loaded: {error}; accepted: a tokenizer.json of the tokenizers library",
            code="invalid_tokenizer",
        ) from None
