"""Cheap facts about tokens, worked out once per tokenizer: the per-token path compares bits and decodes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ...errors import CapabilityError, OptionError

_CALL = re.compile(r"<|\[T|TOOL|(?<!\\)\[$")
_SENTENCE = re.compile(r"[.!?。！？][\"')\]]*\s*$")


T = TypeVar("T")


class TokenFlags:
    """What the text of one token holds: bits of an int, since an `IntFlag` takes longer than all else on a token."""

    NEWLINE = 1
    BLANK = 2  # a blank line inside the token
    SENTENCE = 4  # ends a sentence
    FENCE = 8  # part of a region that must not be cut: backtick, brace, bracket, dollar or backslash
    DIGIT = 16  # ends with a digit
    POINT = 32  # is a bare full stop, perhaps a decimal point
    CALL = 64  # may belong to what begins a tool call


_MISTRAL = {"MistralTokenizer", "MistralCommonBackend", "MistralCommonTokenizer"}


def check_tokenizer(tokenizer: Any) -> None:
    """Raise OptionError for what is not a tokenizer, CapabilityError for one of mistral-common.

    That one makes no special token such as [/THINK] of text, so a closing would be words and the thinking would go on.
    """
    if _MISTRAL & {kind.__name__ for kind in type(tokenizer).__mro__}:
        raise CapabilityError(
            "this model's tokenizer is mistral-common's, which cannot write the markers of thinking as tokens; in vLLM "
            "use tokenizer_mode='hf', in transformers mistral_format=False, which read the same tokens",
            code="mistral_tokenizer",
        )
    if not any(hasattr(tokenizer, name) for name in ("decode", "get_added_vocab")):
        raise OptionError(
            f"tokenizer is a {type(tokenizer).__name__}; accepted: one of transformers, as AutoTokenizer loads it",
            code="invalid_tokenizer",
        )


class TokenizerAdapter:
    """Text <-> ids of one tokenizer, with a flag cache per token id."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        module = getattr(getattr(type(tokenizer), "_decode", None), "__module__", "")
        plain = module.startswith("transformers.tokenization_utils") and hasattr(tokenizer, "backend_tokenizer")
        self._backend = tokenizer.backend_tokenizer if plain else None  # without transformers' checks of each id
        self.flags: dict[int, int] = _PerToken(self._find_flags)
        """`TokenFlags` of each token."""
        self.kinds: dict[int, str] = _PerToken(self._find_kind)
        """What each token is to who compares texts: its digits if it has nothing else, "." if it ends a sentence or
        line, else "".
        """
        self._holding: dict[tuple[int, str], bool] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens kept."""
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of text as a continuation: nothing is added around it."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        """The id of each added token, such as a marker, by its text; tokenizers build this table at each call."""
        return {text: int(token) for text, token in self.tokenizer.get_added_vocab().items()}

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer has; very many if it does not say."""
        return len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else 1 << 60

    def holds(self, token: int, character: str) -> bool:
        """Whether a token may hold a character, or some of its bytes."""
        known = self._holding.get((token, character))
        if known is None:
            text = self.decode([token])
            known = self._holding[token, character] = character in text or "\ufffd" in text
        return known

    def _find_flags(self, token: int) -> int:
        text = self.decode([token])
        flags = 0
        if "\n" in text:
            flags |= TokenFlags.NEWLINE
            if "\n\n" in text:
                flags |= TokenFlags.BLANK
        if _SENTENCE.search(text):
            flags |= TokenFlags.SENTENCE
        if _CALL.search(text):
            flags |= TokenFlags.CALL
        if any(c in text for c in "`{}[]$\\<>") or flags & TokenFlags.CALL:
            flags |= TokenFlags.FENCE
        if text[-1:].isdigit():
            flags |= TokenFlags.DIGIT
        if text == ".":
            flags |= TokenFlags.POINT
        return flags

    def _find_kind(self, token: int) -> str:
        text = self.decode([token]).strip()
        if text.isascii() and text.isdigit():
            return text
        return "." if self.flags[token] & (TokenFlags.SENTENCE | TokenFlags.NEWLINE) else ""


class _PerToken(dict[int, T]):
    """A fact about each token, worked out where first asked for."""

    def __init__(self, find: Callable[[int], T]) -> None:
        self._find = find

    def __missing__(self, token: int) -> T:
        found = self[token] = self._find(token)
        return found


_CODECS: WeakKeyDictionary[Any, TokenizerAdapter] = WeakKeyDictionary()


def get_adapter(tokenizer: Any) -> TokenizerAdapter:
    """The shared codec of a tokenizer object; raises as `check_tokenizer`."""
    check_tokenizer(tokenizer)
    codec = _CODECS.get(tokenizer)
    if codec is None:
        codec = _CODECS[tokenizer] = TokenizerAdapter(tokenizer)
    return codec


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """A case-insensitive pattern that matches any of the phrases at the start of a text, whole words only."""
    alternatives = "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))
    return re.compile(rf"\s*(?:{alternatives})(?![A-Za-z0-9_])", re.IGNORECASE)


def count_common(*sequences: Sequence[int]) -> int:
    """How many tokens all sequences have in common at their beginning."""
    columns = enumerate(zip(*sequences, strict=False))
    return next((index for index, column in columns if len(set(column)) > 1), min(map(len, sequences)))
