"""A model behind a chat endpoint, which shows text and no tokens: thinking is limited in advance, and watched.

Where that is all that a server has, no policy ends the thinking. An effort is passed on, and a number of tokens where
the server takes one (llama.cpp, vLLM). llama.cpp's server also ends the thinking on request
(`/chat/completions/control`), which is done once the thinking goes round in circles.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ..errors import ModelError
from .budgets import OPENAI_EFFORTS, Budget, canonical_effort, fit_budget, tier_by_length
from .engines.openai import StreamError
from .engines.openai.client import OpenAIClient, RefusedError, explain_not_found
from .engines.openai.completions import get_choices
from .options import GenerationOptions
from .policies.exits import Repetition
from .streaming import TextDeltaEvent
from .text.loops import LoopDetector
from .text.markers import Markers
from .text.reasoning_parser import ReasoningParser, TextDelta
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
_MOST = 1 << 31  # tokens of a reply without a limit
_FINISHES: Mapping[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}
_WORD = re.compile(r"\d|[^\W\d]+|[^\w\s]|\n")


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A conversation to be answered; `stops` end the answer."""

    messages: Sequence[Mapping[str, Any]]
    options: GenerationOptions
    max_tokens: int | None = None
    stops: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a chat endpoint has answered; tool calls are in OpenAI's form."""

    result: GenerationResult
    budget: int  # thinking tokens that were allowed
    tool_calls: Sequence[dict[str, Any]] = ()


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

    def make_body(self, model: str, asked: ChatQuestion, tier: str, budget: Budget) -> dict[str, Any]:
        """The body of a request."""
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
        }
        if "reasoning_effort" in self.effort_fields:
            fields["reasoning_effort"] = _KNOWN_EFFORTS.get(effort, effort)
        if "chat_template_kwargs" in self.effort_fields and effort == "none":
            fields["chat_template_kwargs"] = {"enable_thinking": False}
        if options.tools:
            fields["tools"] = [dict(tool) for tool in options.tools]
        if effort != "none":
            fields |= dict.fromkeys(self.budget_fields, budget.thinking)
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


class _Words:
    """The tokens of a text whose tokenizer is unknown: words, digits and marks."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self._ids: dict[str, int] = {}
        self._held = ""

    def read(self, piece: str) -> list[int]:
        """The ids of all words that are complete."""
        text, space, self._held = (self._held + piece).rpartition(" ")
        return [self._id(word) for word in _WORD.findall(text + space)]

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self.kinds)
            self.kinds.append(word if word.isdigit() else "." if word in ".!?\n" else "")
        return self._ids[word]


class ThinkingWatch:
    """Follows thinking as text; `looping` once it goes round in circles."""

    def __init__(self) -> None:
        self.pieces = 0  # mostly one a token
        self._words = _Words()
        self._detector = LoopDetector(self._words.kinds)
        self._limit = LoopDetector.score_after(Repetition().tokens)

    def looping(self, piece: str) -> bool:
        """Whether the thinking has come to be a loop with this piece."""
        self.pieces += 1
        return self._detector.read(self._words.read(piece)) >= self._limit and not self._detector.counts


@dataclass(slots=True)
class _Row:
    """What has arrived of one row."""

    parser: ReasoningParser
    watch: ThinkingWatch = field(default_factory=ThinkingWatch)
    id: str = ""
    finish: str = ""
    reasoning: bool = False  # comes in a field of its own, and has not ended
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    pieces: int = 0


class ChatModel:
    """The model of a chat endpoint."""

    def __init__(
        self, client: OpenAIClient, model: str, dialect: ChatDialect | None = None, markers: Markers | None = None
    ) -> None:
        self.client, self.model = client, model
        self.dialect = dialect or ChatDialect()
        self.markers = markers or DEFAULT_MARKERS

    async def answer(
        self, asked: ChatQuestion, number: int = 0, emit: Callable[[TextDeltaEvent], None] = lambda event: None
    ) -> ChatAnswer:
        """The answer with this number to a question; raises ModelError or OptionError."""
        options = asked.options
        effort = canonical_effort(options.effort)
        tier = tier_by_length(str(asked.messages[-1].get("content"))) if effort == "auto" else effort
        budget = fit_budget(tier, max(2, asked.max_tokens or _MOST), options.answer_reserve, options.strategy)
        if options.thinking_budget is not None:
            budget = replace(budget, thinking=min(options.thinking_budget, asked.max_tokens or _MOST))
        body = self.dialect.make_body(self.model, asked, tier, budget)
        seed = body.get("seed")
        if seed is not None and number:
            body["seed"] = (seed + number) % (1 << 31)
        row = _Row(ReasoningParser(self.markers, "before", asked.stops))
        for attempt in range(_ATTEMPTS):
            try:
                await self._read(row, body, number, emit)
                break
            except StreamError as error:
                if row.pieces or attempt == _ATTEMPTS - 1:
                    raise ModelError(f"{self.client.url} was lost: {error}", code="server_lost") from error
                await asyncio.sleep(max(error.retry_after, _DELAY * 2**attempt))
            except RefusedError as error:
                if error.status == 404:
                    raise await explain_not_found(self.client, self.model, error) from error
                raise
        return self._finish(row, tier, budget)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def _read(
        self, row: _Row, body: Mapping[str, Any], number: int, emit: Callable[[TextDeltaEvent], None]
    ) -> None:
        row.calls.clear()  # of a stream that was lost
        async with aclosing(self.client.stream_events("/chat/completions", body)) as events:
            async for event in self._within_time(events):
                row.id = str(event.get("id") or row.id)
                row.usage = event.get("usage") or row.usage
                for choice in get_choices(event):
                    for delta in self._take(row, choice):
                        emit(TextDeltaEvent(number, delta.text, delta.channel))
                        if delta.channel == "thinking":
                            await self._watch(row, delta.text)
                if row.parser.stopped:
                    row.finish = "stop"
                    break
        if not row.finish:
            raise StreamError("the stream ended before the text did")
        for delta in row.parser.finish():
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

    def _take(self, row: _Row, choice: dict[str, Any]) -> list[TextDelta]:
        """Read a choice of an event; returns what is new of the texts. Raises StreamError for a malformed one."""
        delta = choice.get("delta") or choice.get("message") or {}
        try:
            thinking, content = _read_content(delta.get("content") or "")
            content += delta.get("refusal") or ""
            thinking = delta.get("reasoning_content") or delta.get("reasoning") or thinking
            row.finish = str(choice.get("finish_reason") or row.finish)
            for call in delta.get("tool_calls") or ():
                _add_call(row.calls, call)
            text = ""
            if thinking:
                text += thinking if row.reasoning else f"\n{self.markers.open}{thinking}"  # perhaps after some answer
                row.reasoning = True
            if (content or row.finish) and row.reasoning:
                text += self.markers.close
                row.reasoning = False
            text += content
            row.pieces += bool(thinking or content)
            return row.parser.feed(text) if text else []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StreamError(f"an event is malformed: {error}") from error

    async def _watch(self, row: _Row, text: str) -> None:
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

    def _finish(self, row: _Row, tier: str, budget: Budget) -> ChatAnswer:
        parser, notes = row.parser, list[Decision]()
        details = row.usage.get("completion_tokens_details") or {}
        written = row.usage.get("completion_tokens") or row.pieces
        thinking = details.get("reasoning_tokens")
        if thinking is None:
            thinking = min(row.watch.pieces, written)
            if parser.thinking:
                notes.append(Decision("server", "note", "thinking tokens are counted by pieces of the stream", 0))
        result = GenerationResult(
            text=parser.thinking + parser.answer,
            thinking=parser.thinking,
            answer=parser.answer,
            finish_reason=_FINISHES.get(row.finish, "stop"),
            tier=tier,
            usage=Usage(row.usage.get("prompt_tokens") or 0, thinking, max(0, written - thinking)),
            trace=(*notes, *row.decisions),
        )
        return ChatAnswer(result, budget.thinking, [row.calls[index] for index in sorted(row.calls)])


def _read_content(content: Any) -> tuple[str, str]:
    """The thinking and the text of content, which is a text or a list of parts, as Mistral's servers send them."""
    if isinstance(content, str):
        return "", content
    thinking = [inner["text"] for part in content if part["type"] == "thinking" for inner in part["thinking"]]
    return "".join(thinking), "".join(part["text"] for part in content if part["type"] == "text")


def _add_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call to what has arrived of it."""
    empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(int(piece.get("index") or 0), empty)
    call["id"] = piece.get("id") or call["id"]
    function = piece.get("function") or {}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""
