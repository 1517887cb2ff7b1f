"""Servers with only a chat endpoint: an effort and a limit can be set in advance, and nothing acts on the thinking.

A chat endpoint cannot continue a given beginning of an answer and shows no tokens, so no policy works on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..errors import CapabilityError, ModelError
from .budgets import OPENAI_EFFORTS, canonical_effort, tier_by_length
from .engines.openai import StreamError
from .engines.openai.client import OpenAIClient, RefusedError, choose_model, explain_not_found
from .options import GenerationOptions
from .policies import make_policies
from .prompts import as_messages
from .text.markers import KNOWN, Markers
from .text.reasoning_parser import split_text
from .trace import Decision, GenerationResult, Usage
from .types import Prompt

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
"""Fields for the most tokens of a reply; servers of some models refuse the older one."""
_ATTEMPTS = 3


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
            model = (await choose_model(client, self.model)).name
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_answer(client, slots, model, prompt, options)) for prompt in prompts]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await client.close()
        return [task.result() for task in tasks]


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
    client: OpenAIClient, slots: asyncio.Semaphore, model: str, prompt: Prompt, options: GenerationOptions
) -> GenerationResult:
    messages = as_messages(prompt)
    tier = canonical_effort(options.effort)
    notes: list[Decision] = []
    if tier == "auto":
        tier = tier_by_length(str(messages[-1]["content"]))
        reason = f"{tier}, by the prompt's length: a chat endpoint shows no hidden states"
        notes.append(Decision("effort", "tier", reason, 0))
    body = {
        "model": model,
        "messages": messages,
        "reasoning_effort": OPENAI_EFFORTS.get(tier, tier),
        **options.sampling.as_dict(),
    }
    async with slots:
        reply = await _request(client, model, body, options.max_new_tokens)
    return _make_result(client, reply, tier, notes)


async def _request(client: OpenAIClient, model: str, body: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """The reply to one request; the limit has the older of its two names unless the server wants the other."""
    limit_names, failures = list(LIMIT_FIELDS), 0
    while True:
        try:
            limits = {} if limit is None else {limit_names[0]: limit}
            return await client.request("POST", "/chat/completions", {**body, **limits})
        except RefusedError as error:
            if error.status == 404:
                raise await explain_not_found(client, model, error) from error
            if len(limit_names) == 1 or limit_names[1] not in str(error):
                raise
            limit_names.pop(0)
        except StreamError as error:
            failures += 1
            if failures == _ATTEMPTS:
                raise ModelError(
                    f"the request to {client.url} failed ({error}); check that the server is running",
                    code="server_unreachable",
                ) from error
            await asyncio.sleep(max(error.retry_after, 0.2 * 2**failures))


def _make_result(client: OpenAIClient, reply: dict[str, Any], tier: str, notes: list[Decision]) -> GenerationResult:
    try:
        choice = reply["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        raise ModelError(
            f"the reply of {client.url} has no choice; check that this is the URL of its API", code="invalid_reply"
        ) from None
    answer = str(message.get("content") or "")
    thinking = str(message.get("reasoning") or message.get("reasoning_content") or "")
    if not thinking:  # the server leaves both in one text
        for opening, closing in KNOWN:
            before, found, _ = answer.partition(closing)
            if found:
                state = "before" if opening in before else "thinking"
                thinking, answer = split_text(answer, Markers(opening, closing), state)
                break
    usage = reply.get("usage") or {}
    tokens = usage.get("completion_tokens") or 0
    thinking_tokens = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    if thinking and not thinking_tokens:
        reason = "the server does not say how many tokens were thinking: all count as answer"
        notes.append(Decision("usage", "note", reason, 0))
    thinking_tokens = min(thinking_tokens or 0, tokens)
    return GenerationResult(
        text=f"{thinking}\n\n{answer}" if thinking else answer,
        thinking=thinking.strip(),
        answer=answer.strip(),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        tier=tier,
        usage=Usage(prompt=usage.get("prompt_tokens") or 0, thinking=thinking_tokens, answer=tokens - thinking_tokens),
        trace=tuple(notes),
    )
