"""Refuses prompts that are too long before an engine or a sanitizer has to tokenize them whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..text.markers import KNOWN
from .errors import RequestError

_GROWTH = 4
"""Characters for each token of the limit that are counted first; then as many times more."""
_CUT = 8
"""Tokens that a text may have more because it is cut."""
_ARGUMENTS = ("arguments", "input")
"""Fields with the arguments of a call, a text or an object of which all is rendered."""
_TEXTS = ("content", "text", "output", "tool_calls", "function", *_ARGUMENTS)
"""Fields of messages and items that every chat template renders; not names, ids and thinking."""


class PromptLimit:
    """The longest prompt of a model, in tokens. Threads count the tokens of long texts, one text at a time."""

    def __init__(self, tokenizer: Any, limit: int | None) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self._turn = asyncio.Semaphore()

    async def check(self, messages: Any, rendered: Any, field: str, times: int = 1) -> None:
        """Raise RequestError where messages, and what else is rendered, have more tokens than so many times the limit.

        Both are JSON. Templates add to these texts, so a prompt that passes may still turn out to be too long; the few
        that trim white space would leave less of a prompt that is padded with more of it than the model can read.
        """
        if self.limit is None:
            return
        limit = self.limit * times
        text = "".join((*_list_texts(messages, _TEXTS), *_list_texts(rendered)))
        if len(text) * 4 <= limit or len(text.encode("utf-8", "replace")) <= limit:  # every token has a byte at least
            return
        async with self._turn:
            tokens = await asyncio.to_thread(self._count, text, limit)
        if tokens > limit + _CUT:
            message = f"the prompt has {tokens} tokens or more; accepted: at most {limit}"
            raise RequestError(message, param=field, code="context_length_exceeded")

    def _count(self, text: str, limit: int) -> int:
        """Tokens of a text, or of a beginning of it that is too long already."""
        size, tokens = _GROWTH * limit, 0
        while tokens <= limit + _CUT:
            part = text[:size].encode("utf-8", "replace").decode()  # tokenizers reject lone surrogates
            tokens = len(self.tokenizer(part, add_special_tokens=False)["input_ids"])
            if size >= len(text):
                break
            size *= _GROWTH
        return tokens


def _list_texts(value: Any, names: tuple[str, ...] | None = None, role: str = "", name: str = "") -> Iterator[str]:
    """The texts of a JSON value, or those of its fields with such names, without what templates leave out."""
    if isinstance(value, str):
        text = _answer_of(value) if role == "assistant" else value
        yield _compact(text) if name == "arguments" else text
    elif isinstance(value, Mapping) and value.get("type") != "reasoning":
        for key, one in value.items():
            if names is None or key in names:
                inner = None if key in _ARGUMENTS else names
                yield from _list_texts(one, inner, str(value.get("role") or role), key)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _list_texts(one, names, role, name)


def _answer_of(text: str) -> str:
    """An earlier reply without its thinking, which templates leave out."""
    for _, close in KNOWN:
        text = text.rpartition(close)[2]
    return text


def _compact(arguments: str) -> str:
    """The arguments of a call, which are parsed and written again."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return arguments
