"""Refuses prompts that are too long before they wait for the engine, whose one thread would have to tokenise them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ..types import Engine
from .errors import RequestError
from .settings import ResolvedRequest

_GROWTH = 4
"""Characters for each token of the limit that are counted first; then as many times more."""
_CUT = 8
"""Tokens that a text may have more because it is cut."""


class PromptLimit:
    """The longest prompt of an engine, or a lower limit. Threads count the tokens of long texts, one at a time."""

    def __init__(self, engine: Engine, limit: int | None) -> None:
        limits = [tokens for tokens in (limit, engine.context_length) if tokens is not None]
        self.limit = min(limits, default=None)
        self.tokenizer = engine.tokenizer
        self._turn = asyncio.Semaphore()

    async def check(self, request: ResolvedRequest) -> None:
        """Raise RequestError for a prompt that is too long; one that fits is rendered and counted again later."""
        sizes = (len(json.dumps(part).encode()) for part in (*request.messages, *request.options.tools))
        if self.limit is None or sum(sizes) <= self.limit:  # every token has a byte at least
            return
        async with self._turn:
            tokens = await asyncio.to_thread(self._count, request)
        if tokens > self.limit:
            message = f"the prompt has {tokens} tokens or more; accepted: at most {self.limit}"
            raise RequestError(message, param=request.prompt_field, code="context_length_exceeded")

    def _count(self, request: ResolvedRequest) -> int:
        """Tokens of a prompt, or of a beginning of it that is too long already; 0 if it cannot be rendered."""
        assert self.limit is not None
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        if request.options.tools:
            options["tools"] = [dict(tool) for tool in request.options.tools]
        try:
            text = str(self.tokenizer.apply_chat_template([dict(m) for m in request.messages], **options))
        except Exception:  # what the template raises is reported when the prompt is prepared
            return 0
        size, tokens = _GROWTH * self.limit, 0
        while tokens <= self.limit + _CUT:
            tokens = len(self.tokenizer.backend_tokenizer.encode(text[:size], add_special_tokens=False).ids)
            if size >= len(text):
                break
            size *= _GROWTH
        return tokens
