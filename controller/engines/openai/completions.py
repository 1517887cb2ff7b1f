"""A backend over HTTP: the completions endpoint of vLLM, SGLang, llama.cpp's server and others.

What a server can do is found out by asking it for one token. At best it takes ids and tells ids; one that tells only
text has it tokenised here, and one that takes only text is sent that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import product
from typing import Any

from ....errors import CapabilityError, ModelError
from ...text.markers import KNOWN
from ...text.tokenizer_adapter import TokenizerAdapter, get_adapter
from ...types import SamplingParams, Signals
from .backend import Chunk, StreamError, parse_signals
from .client import OpenAIClient, RefusedError, choose_model, unknown_model
from .streaming_tokenizer import StreamingTokenizer, check_offsets
from .tokenizer_loading import load_tokenizer

_PROBE = "The answer is 42."
_SIGNALS = {"logprobs": 2, "return_tokens_as_token_ids": True}
_IDS = {"return_token_ids": True}
_WHOLE = {"skip_special_tokens": False, "add_special_tokens": False}
_EXTRAS: tuple[dict[str, Any], ...] = ({**_WHOLE, **_IDS, **_SIGNALS}, {**_WHOLE, **_IDS}, _WHOLE, {})
"""What is asked for beyond the standard, in falling order: a server may refuse what it does not know."""


class CompletionsBackend:
    """Writes through a server's completions endpoint; implements `Backend`.

    model: the server's name for it, None for the only one. tokenizer: see `tokenizing.tokenizer_of`.
    """

    def __init__(self, server: OpenAIClient, model: str | None, tokenizer: Any) -> None:
        self.server, self.tokenizer = server, tokenizer
        self.model = model or ""
        self.name = server.url
        self.chances = self.takes_ids = self.tells_ids = False
        self.context_length: int | None = None
        self._extra: dict[str, Any] = {}

    async def open(self) -> None:
        """See `Backend.open`; raises ModelError for a server, key, model or tokenizer that is not what it should be."""
        try:
            found = await choose_model(self.server, self.model or None)
            self.model, self.context_length = found.name, found.context_length
            self.name = f"{self.model} at {self.server.url}"
            self.tokenizer = load_tokenizer(self.tokenizer, found.names)
            await self._probe()
            await self._check_tokenizer()
        except StreamError as error:
            raise ModelError(f"{self.name} does not answer ({error}); see whether the server is well") from error

    @property
    def _codec(self) -> TokenizerAdapter:
        return get_adapter(self.tokenizer)

    async def _probe(self) -> None:
        """Find the best form of request that the server takes."""
        ids = list(self._codec.encode(_PROBE))
        refusal: RefusedError | None = None
        for prompt, extra in product((ids, _PROBE), _EXTRAS):
            body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "stream": True, **extra}
            choices: list[dict[str, Any]] = []
            try:
                async with aclosing(self.server.events("/completions", body)) as events:
                    async for event in events:
                        choices += event.get("choices") or ()
            except RefusedError as error:
                if error.missing:
                    raise await unknown_model(self.server, self.model, error) from error
                refusal = refusal or error
                continue
            self.takes_ids = prompt is ids
            self.tells_ids = any(choice.get("token_ids") for choice in choices)
            self.chances = self.tells_ids and any(_signals(choice) for choice in choices)
            self._extra = {name: value for name, value in extra.items() if name not in _SIGNALS}
            if not self.tells_ids:
                check_offsets(self.tokenizer)
                self._check_markers()
            return
        assert refusal is not None  # nothing but a refusal goes on with the loop
        raise refusal

    def _check_markers(self) -> None:
        """Raise CapabilityError where the end of the thinking would stay unseen: in text without special tokens."""
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        hidden = [closing for _, closing in KNOWN if closing in special]
        if hidden and "skip_special_tokens" not in self._extra:
            raise CapabilityError(
                f"{self.name} tells text without special tokens, and this model's {hidden[0]} is one; "
                "use a server that tells token ids (vLLM)"
            )

    async def _check_tokenizer(self) -> None:
        """Raise ModelError where a text is other tokens to the server than here, as far as it lets that be seen."""
        asked = {"model": self.model, "prompt": _PROBE, "max_tokens": 1, "temperature": 0.0}
        reply = await self.server.ask("POST", "/completions", {**asked, **self._extra})
        theirs = next((choice.get("prompt_token_ids") for choice in reply.get("choices") or ()), None)
        count = len(theirs) if theirs else (reply.get("usage") or {}).get("prompt_tokens")
        ours = [list(self.tokenizer(_PROBE, add_special_tokens=special)["input_ids"]) for special in (False, True)]
        if (theirs and list(theirs) not in ours) or (count and count not in map(len, ours)):
            raise ModelError(
                f"{_PROBE!r} is {count} tokens to {self.name} and {ours[0]} to the tokenizer at hand; "
                "name the served model's own (tokenizer)"
            )

    async def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, signals: bool
    ) -> AsyncGenerator[Chunk, None]:
        """See `Backend.stream`."""
        prompt = list(ids) if self.takes_ids else self._text_of(ids)
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": limit,
            "stream": True,
            **self._extra,
            **(_SIGNALS if signals else {}),
            **sampling.asked(),
        }
        words = None if self.tells_ids else StreamingTokenizer(self.tokenizer)
        async with aclosing(self.server.events("/completions", body)) as events:
            async for event in events:
                for choice in event.get("choices") or ():
                    chunk = self._chunk(choice, words)
                    yield chunk
                    if chunk.finish is not None:
                        return
        raise StreamError("the stream ended before the text did")

    async def close(self) -> None:
        """See `Backend.close`."""
        await self.server.close()

    def _chunk(self, choice: dict[str, Any], words: StreamingTokenizer | None) -> Chunk:
        reason = choice.get("finish_reason")
        finish: Any = None if reason is None else "length" if reason == "length" else "stop"
        if words is None:
            ids = tuple(choice.get("token_ids") or ())
            unsaid = not ids
        else:
            ids, unsaid = words.add(choice.get("text") or "", last=finish is not None), True
        if finish == "stop" and unsaid and self.tokenizer.eos_token_id is not None:
            ids = (*ids, self.tokenizer.eos_token_id)
        return Chunk(ids, _signals(choice), finish)

    def _text_of(self, ids: Sequence[int]) -> str:
        """A prompt as text; what servers put before each text themselves is left out."""
        text = self._codec.decode(ids)
        opening = self.tokenizer.bos_token
        adds = opening and list(self.tokenizer("")["input_ids"][:1]) == [self.tokenizer.bos_token_id]
        return text.removeprefix(opening) if adds and "add_special_tokens" not in self._extra else text


def _signals(choice: dict[str, Any]) -> tuple[Signals, ...]:
    """The signals of a choice's tokens; none where it does not have the probabilities of two tokens for each."""
    told = choice.get("logprobs") or {}
    chosen, tops = told.get("token_logprobs") or (), told.get("top_logprobs") or ()
    if not chosen or len(chosen) != len(tops) or any(not top or len(top) < 2 for top in tops):
        return ()
    return tuple(parse_signals(one, sorted(top.values(), reverse=True)) for one, top in zip(chosen, tops, strict=True))
