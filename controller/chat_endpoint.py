"""Where there is only a chat endpoint: what can be asked of it beforehand, for nobody can act while it writes.

Such an endpoint takes no beginning of an answer to go on from and shows no tokens, so no policy can work on it. What
remains is the effort, which the server is told, and a cap on all that it writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..errors import CapabilityError, ModelError
from .budgets import OPENAI_EFFORTS, canonical_effort, tier_by_length
from .engines.openai.backend import StreamError
from .engines.openai.client import OpenAIClient, RefusedError, choose_model, unknown_model
from .options import GenerationOptions
from .policies import make_policies
from .prompts import as_messages
from .text.markers import KNOWN, Markers
from .text.reasoning_parser import split_text
from .trace import Decision, GenerationResult, Usage
from .types import Prompt

_CAPS = ("max_tokens", "max_completion_tokens")
_TRIES = 3


class ChatOnlyEndpoint:
    """Answers prompts through a server's chat completions.

    model: None takes the only one. streams: how many requests are open at once. Others as in `connect`.
    """

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
        OpenAIClient(base_url, api_key)  # complains here of what is no URL

    def run(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[GenerationResult]:
        """Answer all prompts, in order; not to be called where an event loop runs, see `arun`."""
        return asyncio.run(self.arun(prompts, options))

    async def arun(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[GenerationResult]:
        """Answer all prompts, in order.

        Raises CapabilityError for policies and whatever else needs more than such an endpoint, ModelError for trouble
        with the server.
        """
        refuse(options)
        server = OpenAIClient(self.base_url, self.api_key, self.timeout)
        slots = asyncio.Semaphore(self.streams)
        try:
            model = (await choose_model(server, self.model)).name
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_answer(server, slots, model, prompt, options)) for prompt in prompts]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await server.close()
        return [task.result() for task in tasks]


def refuse(options: GenerationOptions) -> None:
    """Raise CapabilityError for options that a chat endpoint cannot carry out, naming them."""
    policies = [policy.name for policy in make_policies(options.preset, options.policies)]
    asked = {
        f"the policies {', '.join(policies)}": policies,
        "shadow mode": options.shadow,
        "signals": options.signals,
        "recording": options.record,
        "probes": options.probes,
        "an answer reserve": options.answer_reserve,
        "a strategy": options.strategy != "tiers",
    }
    if missing := [what for what, wanted in asked.items() if wanted]:
        raise CapabilityError(
            f"a chat endpoint shows no tokens and cannot be made to go on, which {', '.join(missing)} would need; "
            "accepted: preset 'off' with an effort and max_new_tokens; or connect to a completions endpoint"
        )


async def _answer(
    server: OpenAIClient, slots: asyncio.Semaphore, model: str, prompt: Prompt, options: GenerationOptions
) -> GenerationResult:
    messages = as_messages(prompt)
    tier = canonical_effort(options.effort)
    notes: list[Decision] = []
    if tier == "auto":
        tier = tier_by_length(str(messages[-1]["content"]))
        notes.append(
            Decision("effort", "tier", f"{tier}, by the prompt's length: a chat endpoint can be asked no more", 0)
        )
    body = {
        "model": model,
        "messages": messages,
        "reasoning_effort": OPENAI_EFFORTS.get(tier, tier),
        **options.sampling.as_dict(),
    }
    async with slots:
        reply = await _asked(server, model, body, options.max_new_tokens)
    return _generation(server, reply, tier, notes)


async def _asked(server: OpenAIClient, model: str, body: dict[str, Any], limit: int) -> dict[str, Any]:
    """The reply to one request; the cap goes by the older of its two names unless the server wants the other."""
    caps, lost = list(_CAPS), 0
    while True:
        try:
            return await server.ask("POST", "/chat/completions", {**body, caps[0]: limit})
        except RefusedError as error:
            if error.missing:
                raise await unknown_model(server, model, error) from error
            if len(caps) == 1 or caps[1] not in str(error):
                raise
            caps.pop(0)
        except StreamError as error:
            lost += 1
            if lost == _TRIES:
                raise ModelError(f"{server.url} does not answer ({error}); see whether the server is well") from error
            await asyncio.sleep(0.2 * 2**lost)


def _generation(server: OpenAIClient, reply: dict[str, Any], tier: str, notes: list[Decision]) -> GenerationResult:
    try:
        choice = reply["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        raise ModelError(f"{server.url} answers with no choice; check that the URL is that of its API") from None
    answer = str(message.get("content") or "")
    thinking = str(message.get("reasoning") or message.get("reasoning_content") or "")
    if not thinking:
        thinking, answer = _split_inline_thinking(answer)
    usage = reply.get("usage") or {}
    written = usage.get("completion_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    if thinking and not thought:
        notes.append(
            Decision("usage", "note", "the server does not say how many tokens were thinking: all count as answer", 0)
        )
    thought = min(thought or 0, written)
    return GenerationResult(
        text=f"{thinking}\n\n{answer}" if thinking else answer,
        thinking=thinking.strip(),
        answer=answer.strip(),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        tier=tier,
        usage=Usage(prompt=usage.get("prompt_tokens") or 0, thinking=thought, answer=written - thought),
        trace=tuple(notes),
    )


def _split_inline_thinking(text: str) -> tuple[str, str]:
    """Split thinking and answer where the server leaves both in one text."""
    for opening, closing in KNOWN:
        before, found, _ = text.partition(closing)
        if found:
            return split_text(text, Markers(opening, closing), "before" if opening in before else "thinking")
    return "", text
