"""A model behind a chat endpoint, which shows text and no tokens: thinking is limited in advance, and watched.

Where that is all that a server has, no policy ends the thinking. An effort is passed on, and a number of tokens where
the server takes one (llama.cpp, vLLM). llama.cpp's server also ends the thinking on request
(`/chat/completions/control`), which is done once the thinking goes round in circles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..errors import ModelError
from .budgets import OPENAI_EFFORTS, canonical_effort, fit_budget, tier_by_length
from .chat_stream import ChatRow, read_count
from .engines.openai import LONGEST_REST, StreamError
from .engines.openai.client import OpenAIClient, RefusedError, ServedModel, explain_not_found
from .engines.openai.completions import get_choices
from .options import MAX_OUTPUT_TOKENS, GenerationOptions
from .streaming import TextDeltaEvent
from .text.markers import Markers
from .trace import Decision, GenerationResult, Usage
from .types import FinishReason

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
"""Fields for the most tokens of a reply; servers of some models refuse the older one."""
DEFAULT_MARKERS = Markers("<think>", "</think>")
EFFORT_FIELDS = (("reasoning_effort", "chat_template_kwargs"), ("reasoning_effort",), ("chat_template_kwargs",), ())
"""Fields that say how much to think, from the best form to none; a server may refuse those that it does not know."""
BUDGET_FIELDS: Mapping[str, tuple[str, ...]] = {
    "llamacpp": ("thinking_budget_tokens", "reasoning_budget_tokens"),
    "vllm": ("thinking_token_budget",),
}
"""Fields that limit the thinking, by the owner that a server names for its models."""
_KNOWN_EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Efforts that many servers refuse -> the nearest that all of them know."""
_ATTEMPTS, _DELAY = 3, 0.2
_FINISHES: Mapping[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A conversation to be answered; `stops` end the answer, and `fields` are passed on as they are."""

    messages: Sequence[Mapping[str, Any]]
    options: GenerationOptions
    max_tokens: int | None = None  # None leaves it to the server
    stops: Sequence[str] = ()
    has_effort: bool = True  # whether anybody chose the options' effort; else it is left to the server
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a chat endpoint has answered; tool calls and log-probabilities are in OpenAI's form."""

    result: GenerationResult
    budget: int  # thinking tokens that were allowed
    tool_calls: Sequence[dict[str, Any]] = ()
    cached: int = 0  # prompt tokens that the server had read before
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatDialect:
    """What a chat endpoint understands."""

    limit_field: str = LIMIT_FIELDS[0]
    effort_fields: tuple[str, ...] = ()
    budget_fields: tuple[str, ...] = ()
    ends_thinking: bool = False  # on request

    def describe(self) -> str:
        """What can be done about the thinking, and what cannot."""
        means = [*self.effort_fields, *self.budget_fields[:1], *(["the end of loops"] if self.ends_thinking else [])]
        return (
            "the upstream server has only a chat endpoint: no policy ends the thinking and no answer is forced; it is "
            f"limited by {', '.join(means) or 'nothing but max_tokens'}"
        )

    def make_body(self, model: str, asked: ChatQuestion, tier: str, budget: int | None) -> dict[str, Any]:
        """The body of a request; `budget` limits the thinking."""
        options = asked.options
        effort = tier if options.effort == "auto" else options.effort
        effort = OPENAI_EFFORTS.get(effort, effort)
        fields: dict[str, Any] = {
            "model": model,
            "messages": [dict(message) for message in asked.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if asked.max_tokens is None else {self.limit_field: asked.max_tokens}),
            **options.sampling.as_dict(),
            **asked.fields,
        }
        if "reasoning_effort" in self.effort_fields and (asked.has_effort or effort == "none"):
            fields["reasoning_effort"] = _KNOWN_EFFORTS.get(effort, effort)
        if "chat_template_kwargs" in self.effort_fields and effort == "none":
            fields["chat_template_kwargs"] = {"enable_thinking": False}
        if options.tools:
            fields["tools"] = [dict(tool) for tool in options.tools]
        fields |= {} if budget is None else dict.fromkeys(self.budget_fields, budget)
        if effort != "none":
            fields |= {"reasoning_control": True} if self.ends_thinking else {}
        return fields


async def probe_dialect(client: OpenAIClient, model: str, card: Mapping[str, Any]) -> ChatDialect:
    """Find the best form of request that a chat endpoint accepts, by requests for one token; `card` lists the model.

    Raises RefusedError where it refuses all.
    """
    owner = str(card.get("owned_by") or "")
    refusal: RefusedError | None = None
    for limit, budgets, efforts in product(LIMIT_FIELDS, {BUDGET_FIELDS.get(owner, ()): 0, (): 0}, EFFORT_FIELDS):
        values = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "1 + 1"}], limit: 1}
        body |= {name: values[name] for name in efforts} | dict.fromkeys(budgets, 1)
        try:
            await client.request("POST", "/chat/completions", body)
        except RefusedError as error:
            refusal = refusal or error
            continue
        return ChatDialect(limit, efforts, budgets, bool(budgets) and owner == "llamacpp")
    assert refusal is not None  # the loop continues only after a refusal
    raise refusal


class ChatModel:
    """The model of a chat endpoint."""

    def __init__(
        self,
        client: OpenAIClient,
        model: ServedModel,
        dialect: ChatDialect | None = None,
        markers: Markers | None = None,
    ) -> None:
        self.client, self.model, self.context = client, model.name, model.context_length
        self.dialect = dialect or ChatDialect()
        self.markers, self.longest_rest = markers or DEFAULT_MARKERS, LONGEST_REST

    async def answer(
        self, asked: ChatQuestion, number: int = 0, emit: Callable[[TextDeltaEvent], None] = lambda event: None
    ) -> ChatAnswer:
        """The answer with this number to a question; raises ModelError or OptionError."""
        effort = canonical_effort(asked.options.effort)
        tier = tier_by_length(str(asked.messages[-1].get("content"))) if effort == "auto" else effort
        budget, is_limit = self._make_budget(asked, tier)
        body = self.dialect.make_body(self.model, asked, tier, budget if is_limit else None)
        seed = body.get("seed")
        if seed is not None and number:
            body["seed"] = (seed + number) % (1 << 31)
        for attempt in range(_ATTEMPTS):
            row = ChatRow(self.markers, asked.stops)
            try:
                await self._read(row, body, number, emit)
                break
            except StreamError as error:
                if row.pieces or attempt == _ATTEMPTS - 1 or error.retry_after > self.longest_rest:
                    raise ModelError(f"{self.client.url} was lost: {error}", code="server_lost") from error
                await asyncio.sleep(max(error.retry_after, _DELAY * 2**attempt))
            except RefusedError as error:
                if error.status == 404:
                    raise await explain_not_found(self.client, self.model, error) from error
                raise
        return self._finish(row, tier, budget)

    def _make_budget(self, asked: ChatQuestion, tier: str) -> tuple[int, bool]:
        """The thinking tokens that there is room for, and whether somebody wants no more; may raise OptionError."""
        options, given = asked.options, asked.options.thinking_budget
        room = max(2, asked.max_tokens or self.context or MAX_OUTPUT_TOKENS)
        reserve = options.answer_reserve and min(options.answer_reserve, room // 2)
        budget = fit_budget(tier, room, reserve, options.strategy)
        if given is not None:
            return min(given, asked.max_tokens or given), True
        return budget.thinking, asked.max_tokens is not None or budget.thinking < room - budget.reserve

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def _read(
        self, row: ChatRow, body: Mapping[str, Any], number: int, emit: Callable[[TextDeltaEvent], None]
    ) -> None:
        async with aclosing(self.client.stream_events("/chat/completions", body)) as events:
            async for event in self._within_time(events):
                row.id = str(event.get("id") or row.id)
                row.usage = event.get("usage") or row.usage
                for choice in get_choices(event):
                    for delta in row.read(choice):
                        emit(TextDeltaEvent(number, delta.text, delta.channel))
                        if delta.channel == "thinking":
                            await self._watch(row, delta.text)
                if row.stopped:
                    row.finish = "stop"
                    break
        if not row.finish:
            raise StreamError("the stream ended before the text did")
        for delta in row.end():
            emit(TextDeltaEvent(number, delta.text, delta.channel))

    async def _within_time(self, events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
        """The events; raises ModelError where the server only keeps the connection alive."""
        latest = time.monotonic()
        async for event in events:
            now = time.monotonic()
            if event.get("choices"):
                latest = now
            elif now - latest > self.client.timeout:
                raise ModelError(f"{self.client.url} writes nothing; check the server", code="server_timeout")
            yield event

    async def _watch(self, row: ChatRow, text: str) -> None:
        """Have the server end thinking that goes round in circles; where it cannot, that is only noted."""
        if not row.watch.looping(text) or row.decisions:
            return
        ended = False
        if self.dialect.ends_thinking:
            body = {"id": row.id, "action": "reasoning_end", "model": self.model}
            with suppress(ModelError, StreamError):  # an older server: the thinking goes on
                reply = await self.client.request("POST", "/chat/completions/control", body)
                ended = reply.get("success") is True
        reason = "loop: the same statements came three times or more"
        reason += "" if ended else "; this server cannot be told to end it"
        row.decisions.append(Decision("repetition", "close", reason, row.watch.pieces, acted=ended))

    def _finish(self, row: ChatRow, tier: str, budget: int) -> ChatAnswer:
        thought, answer, notes = row.text("thinking"), row.text("answer"), list[Decision]()
        written = read_count(row.usage, "completion_tokens") or row.pieces
        thinking = read_count(row.usage, "completion_tokens_details", "reasoning_tokens")
        if thinking is None:
            thinking = min(row.watch.pieces, written)
            if thought:
                notes.append(Decision("server", "note", "thinking tokens are counted by pieces of the stream", 0))
        result = GenerationResult(
            text=thought + answer,
            thinking=thought,
            answer=answer,
            finish_reason=_FINISHES.get(row.finish, "stop"),
            tier=tier,
            usage=Usage(read_count(row.usage, "prompt_tokens") or 0, thinking, max(0, written - thinking)),
            trace=(*notes, *row.decisions),
        )
        cached = read_count(row.usage, "prompt_tokens_details", "cached_tokens") or 0
        return ChatAnswer(result, budget, row.tool_calls(), cached, row.logprobs())
