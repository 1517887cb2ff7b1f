"""The engine behind a URL: the completions endpoint of vLLM, SGLang, llama.cpp's server and others.

What a server can do is found out with requests for one token. At best it takes and returns token ids. The text of a
server that returns only text is tokenized here, and one that takes only text gets text.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import product
from typing import Any

from ....errors import CapabilityError, ModelError
from ...text.markers import KNOWN
from ...text.tokenizer_adapter import get_adapter
from ...types import SamplingParams, Signals
from . import Chunk, StreamError, StreamingTokenizer, check_offsets, load_tokenizer, signals_from_logprobs
from .client import OpenAIClient, RefusedError, choose_model, explain_not_found
from .engine import RemoteEngine
from .events import read_rest

_TOKEN_IDS_END = 1 << 31
_LONGEST_STREAM = 3600.0  # seconds that one stream may take
_MAX_TEXT = 1 << 15  # characters of one event's text; more than any server collects before it sends
_MALFORMED = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
"""What reading an event of another form raises."""
_TEST_PROMPT = "The answer is 42."
_LOGPROBS = {"logprobs": 2, "return_tokens_as_token_ids": True}
_TOKEN_IDS = {"return_token_ids": True}
_SPECIAL_TOKENS = {"skip_special_tokens": False, "add_special_tokens": False}
_EXTENSIONS: tuple[dict[str, Any], ...] = (
    {**_SPECIAL_TOKENS, **_TOKEN_IDS, **_LOGPROBS},
    {**_SPECIAL_TOKENS, **_TOKEN_IDS},
    _SPECIAL_TOKENS,
    {},
)
"""Fields beyond the standard that are tried, from best to none; a server may refuse fields that it does not know."""


class CompletionsBackend:
    """Generates through a server's completions endpoint; implements `CompletionBackend`.

    `takes_ids` and `returns_ids` tell whether prompts and outputs are token ids or text. For the arguments see
    `connect`.
    """

    def __init__(self, client: OpenAIClient, model: str | None, tokenizer: Any) -> None:
        self.client, self.tokenizer = client, tokenizer
        self.model = model or ""
        self.name = client.url
        self.has_logprobs = self.takes_ids = self.returns_ids = False
        self.context_length: int | None = None
        self._extensions: dict[str, Any] = {}

    async def open(self) -> None:
        """See `CompletionBackend.open`; raises ModelError for a wrong server, key, model or tokenizer."""
        try:
            served = await choose_model(self.client, self.model or None)
            self.model, self.context_length = served.name, served.context_length
            self.name = f"{self.model} at {self.client.url}"
            self.tokenizer = load_tokenizer(self.tokenizer, served.names)
            await self._find_extensions()
            await self._check_tokenizer()
        except StreamError as error:
            raise ModelError(
                f"the request to {self.name} failed ({error}); check that the server is running",
                code="server_unreachable",
            ) from error

    async def _find_extensions(self) -> None:
        """Find the best form of request that the server accepts."""
        ids = list(get_adapter(self.tokenizer).encode(_TEST_PROMPT))
        refusal: RefusedError | None = None
        for prompt, extensions in product((ids, _TEST_PROMPT), _EXTENSIONS):
            body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "stream": True}
            try:
                async with aclosing(self.client.stream_events("/completions", {**body, **extensions})) as events:
                    choices = [choice async for event in events for choice in get_choices(event)]
            except RefusedError as error:
                if error.status == 404:
                    raise await explain_not_found(self.client, self.model, error) from error
                refusal = refusal or error
                continue
            self.takes_ids = prompt is ids
            self.returns_ids = any(choice.get("token_ids") for choice in choices)
            self.has_logprobs = self.returns_ids and any(_has_signals(choice) for choice in choices)
            self._extensions = {name: value for name, value in extensions.items() if name not in _LOGPROBS}
            if not self.returns_ids:
                check_offsets(self.tokenizer)
                self._check_markers()
            return
        assert refusal is not None  # the loop continues only after a refusal
        raise refusal

    def _check_markers(self) -> None:
        """Raise CapabilityError if the end of the thinking would be invisible in text without special tokens."""
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        hidden = [close for _, close in KNOWN if close in special]
        if hidden and "skip_special_tokens" not in self._extensions:
            raise CapabilityError(
                f"{self.name} returns text without special tokens, and this model's {hidden[0]} is one; use a server "
                "that returns token ids (vLLM)",
                code="hidden_markers",
            )

    async def _check_tokenizer(self) -> None:
        """Raise ModelError if the server tokenizes a text differently, as far as it shows that."""
        body = {"model": self.model, "prompt": _TEST_PROMPT, "max_tokens": 1, "temperature": 0.0}
        reply = await self.client.request("POST", "/completions", {**body, **self._extensions})
        theirs = next((choice.get("prompt_token_ids") for choice in get_choices(reply)), None)
        theirs = theirs if isinstance(theirs, list) else None
        usage = reply.get("usage")
        count = len(theirs) if theirs else usage.get("prompt_tokens") if isinstance(usage, dict) else None
        ours = [
            list(self.tokenizer(_TEST_PROMPT, add_special_tokens=special)["input_ids"]) for special in (False, True)
        ]
        if (theirs and list(theirs) not in ours) or (count and count not in map(len, ours)):
            raise ModelError(
                f"{_TEST_PROMPT!r} is {count} tokens for {self.name} and {ours[0]} for this tokenizer; pass the served "
                "model's own (tokenizer=)",
                code="wrong_tokenizer",
            )

    async def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, logprobs: int
    ) -> AsyncGenerator[Chunk, None]:
        body = {
            "model": self.model,
            "prompt": list(ids) if self.takes_ids else self._decode_prompt(ids),
            "max_tokens": limit,
            "stream": True,
            **self._extensions,
            **({**_LOGPROBS, "logprobs": logprobs} if logprobs else {}),
            **sampling.as_dict(),
        }
        tokenizer = None if self.returns_ids else StreamingTokenizer(self.tokenizer)
        async with aclosing(self.client.stream_events("/completions", body)) as events:
            began = latest = time.monotonic()
            async for event in events:
                self._check_time(began, latest)
                for choice in get_choices(event):
                    try:
                        chunk = self._read_chunk(choice, tokenizer)
                    except _MALFORMED as error:
                        raise StreamError(f"an event is malformed: {error}") from error
                    if chunk.ids:
                        latest = time.monotonic()
                    if chunk.finish is not None:
                        await read_rest(events)
                    yield chunk
                    if chunk.finish is not None:
                        return
        raise StreamError("the stream ended before the text did")

    def _check_time(self, began: float, latest: float) -> None:
        """Raise ModelError where the server only keeps the connection alive."""
        if time.monotonic() > min(latest + self.client.timeout, began + _LONGEST_STREAM):
            message = f"{self.name} writes no token; raise timeout ({self.client.timeout:g} s) or check the server"
            raise ModelError(message, code="server_timeout")

    async def close(self) -> None:
        await self.client.close()

    def _read_chunk(self, choice: dict[str, Any], tokenizer: StreamingTokenizer | None) -> Chunk:
        reason = choice.get("finish_reason")
        if not isinstance(reason, str | None):
            raise TypeError("finish_reason is not text")
        finish: Any = None if reason is None else "length" if reason == "length" else "stop"
        if tokenizer is None:
            ids = tuple(choice.get("token_ids") or ())
            if any(type(token) is not int or not 0 <= token < _TOKEN_IDS_END for token in ids):
                raise ValueError("token_ids has ids that this model does not have")
            lacks_eos = not ids
        else:
            text = choice.get("text") or ""
            if not isinstance(text, str) or len(text) > _MAX_TEXT:
                raise ValueError(f"text is not text of at most {_MAX_TEXT} characters")
            ids, lacks_eos = tokenizer.add(text, last=finish is not None), True
        if finish == "stop" and lacks_eos and self.tokenizer.eos_token_id is not None:
            ids = (*ids, self.tokenizer.eos_token_id)
        return Chunk(ids, _read_signals(choice), finish)

    def _decode_prompt(self, ids: Sequence[int]) -> str:
        """A prompt as text, without the token that servers put before every text themselves."""
        text = get_adapter(self.tokenizer).decode(ids)
        bos = self.tokenizer.bos_token
        added = bos and list(self.tokenizer("")["input_ids"][:1]) == [self.tokenizer.bos_token_id]
        return text.removeprefix(bos) if added and "add_special_tokens" not in self._extensions else text


def get_choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The first choice of an event; others are of samples that were not asked for. Raises StreamError."""
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise StreamError("an event is malformed: choices is not a list of objects")
    return [choice for choice in choices if not choice.get("index")]


def _read_signals(choice: dict[str, Any]) -> tuple[Signals, ...]:
    """The signals of a choice's tokens; none unless it has the probabilities of two tokens for each."""
    logprobs = choice.get("logprobs") or {}
    chosen, tops = logprobs.get("token_logprobs") or (), logprobs.get("top_logprobs") or ()
    if not chosen or len(chosen) != len(tops) or any(not top or len(top) < 2 for top in tops):
        return ()
    return tuple(
        signals_from_logprobs(logprob, sorted(top.values(), reverse=True))
        for logprob, top in zip(chosen, tops, strict=True)
    )


def _has_signals(choice: dict[str, Any]) -> bool:
    try:
        return bool(_read_signals(choice))
    except _MALFORMED:
        return False


def connect(
    base_url: str,
    model: str | None = None,
    tokenizer: Any = None,
    api_key: str | None = None,
    *,
    timeout: float = 120.0,
) -> RemoteEngine:
    """An engine on the completions endpoint of a server such as vLLM's, at `http://host:port/v1`.

    Raises OptionError, ModelError or CapabilityError where server, model or tokenizer is not as it should be.

    Args:
        model: the server's name for it; None takes the only one.
        tokenizer: of the served model: an object, a folder or a name. None tries the model's name, then the path that
            the server reports.
        api_key: None takes it from the environment, see `client.find_key`; "" sends none.
        timeout: seconds that the server may write no token.
    """
    return RemoteEngine(CompletionsBackend(OpenAIClient(base_url, api_key, timeout), model, tokenizer))
