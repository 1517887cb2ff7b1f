"""Servers with only a chat endpoint: an effort and a limit can be set in advance, and nothing acts on the thinking.

A chat endpoint cannot continue a given beginning of an answer and shows no tokens, so no policy works on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from ..errors import CapabilityError
from .chat_model import LIMIT_FIELDS, ChatDialect, ChatModel, ChatQuestion
from .chat_stream import ChatRow
from .engines.openai import run_together
from .engines.openai.client import OpenAIClient, RefusedError, choose_model
from .options import GenerationOptions
from .policies import make_policies
from .prompts import as_messages
from .text.markers import KNOWN, Markers
from .trace import Decision, GenerationResult
from .types import Prompt


class ChatOnlyEndpoint:
    """Answers prompts through a server's chat completions, at most `streams` at the same time; see `connect`."""

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        streams: int = 16,
    ) -> None:
        self.base_url, self.model, self.api_key = base_url, model, api_key
        self.timeout, self.streams = timeout, streams
        OpenAIClient(base_url, api_key)  # raises for a wrong URL

    def run(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[GenerationResult]:
        """Answer all prompts, in order; where an event loop is running, use `arun`."""
        return asyncio.run(self.arun(prompts, options))

    async def arun(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[GenerationResult]:
        """Answer all prompts, in order.

        Raises CapabilityError for what needs more than a chat endpoint, ModelError for trouble with the server.
        """
        check_options(options)
        client = OpenAIClient(self.base_url, self.api_key, self.timeout)
        slots = asyncio.Semaphore(self.streams)
        try:
            served = await choose_model(client, self.model)
            model = ChatModel(client, served, ChatDialect(effort_fields=("reasoning_effort",)))
            return await run_together(_answer(model, slots, prompt, options) for prompt in prompts)
        finally:
            await client.close()


def check_options(options: GenerationOptions) -> None:
    """Raise CapabilityError for options that a chat endpoint cannot carry out."""
    policies = [policy.name for policy in make_policies(options.preset, options.policies)]
    unsupported = {
        f"the policies {', '.join(policies)}": policies,
        "forward modifiers": options.modifiers,
        "shadow mode": options.shadow,
        "signals": options.signals,
        "recording": options.record,
        "probes": options.probes,
        "a thinking budget": options.thinking_budget,
        "an answer reserve": options.answer_reserve,
        "a strategy": options.strategy != "tiers",
    }
    if requested := [what for what, wanted in unsupported.items() if wanted]:
        raise CapabilityError(
            f"a chat endpoint shows no tokens and cannot continue a text, as {', '.join(requested)} would need; "
            "accepted: preset 'off' with an effort and max_new_tokens; or connect to a completions endpoint",
            code="chat_endpoint_only",
        )


async def _answer(
    model: ChatModel, slots: asyncio.Semaphore, prompt: Prompt, options: GenerationOptions
) -> GenerationResult:
    asked = ChatQuestion(as_messages(prompt), options, options.max_new_tokens)
    async with slots:
        sent = model.dialect.limit_field  # others that run at the same time may change it
        try:
            result = (await model.answer(asked)).result
        except RefusedError as error:  # the limit has the older of its two names unless the server wants the other
            if LIMIT_FIELDS[1] not in str(error) or sent == LIMIT_FIELDS[1]:
                raise
            model.dialect = replace(model.dialect, limit_field=LIMIT_FIELDS[1])
            result = (await model.answer(asked)).result
    result = _split_off_thinking(result)
    if options.effort != "auto":
        return result
    reason = f"{result.tier}, by the prompt's length: a chat endpoint shows no hidden states"
    return replace(result, trace=(Decision("effort", "tier", reason, 0), *result.trace))


def _split_off_thinking(result: GenerationResult) -> GenerationResult:
    """The result with the thinking of a server that leaves it in the text, in other markers or without an opening."""
    pair = next((pair for pair in KNOWN if pair[1] in result.answer), None)
    if pair is None or result.thinking:
        return result
    row = ChatRow(Markers(*pair))
    row.state = "before" if pair[0] in result.answer.partition(pair[1])[0] else "thinking"
    row.read({"delta": {"content": result.answer}})
    row.end()
    note = Decision("usage", "note", "the server leaves the thinking in its answer, whose tokens count as answer", 0)
    thinking = row.text("thinking").strip()
    return replace(result, thinking=thinking, answer=row.text("answer"), trace=(*result.trace, note))
