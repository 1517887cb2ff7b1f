"""
title: tersely
description: Sets how much a model that tersely serves thinks, and says what its reply cost.
author: tersely
version: 0.1.0
required_open_webui_version: 0.12.4
license: Apache-2.0
"""

# Admin panel > Functions > + > paste this file; then switch it on for a model, or for all. It needs no package, and
# changes nothing for models that are not served by tersely. The first line of the file must stay as it is.

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import BaseModel, Field

Effort = Literal["", "none", "minimal", "low", "medium", "high", "xhigh", "max", "auto"]
CONTROLS = ("reasoning_effort", "thinking_token_budget", "thinking", "tersely", "chat_template_kwargs")
"""What a request may say about its thinking already; it then stays as it is."""


class Filter:
    """What Open WebUI calls before, during and after a reply."""

    class Valves(BaseModel):
        """Settings of the administrator."""

        priority: int = 0
        reasoning_effort: Effort = Field(
            default="", description="How much models think; empty leaves it to the server."
        )
        thinking_tokens: int = Field(
            default=0, ge=0, description="Most thinking tokens, where no effort is set; 0 for no cap."
        )
        preset: Literal["", "off", "budget", "balanced", "careful", "certified"] = Field(
            default="", description="When thinking is ended early; empty leaves it to the server."
        )
        models: str = Field(
            default="", description="More ids of models served by tersely, such as those behind a workspace."
        )
        show_usage: bool = Field(default=True, description="Show thinking and answer tokens under each reply.")

    class UserValves(BaseModel):
        """Settings of a user, which come first."""

        reasoning_effort: Effort = Field(
            default="", description="How much models think; empty leaves it to the administrator."
        )

    def __init__(self) -> None:
        self.valves = self.Valves()

    def inlet(
        self, body: dict[str, Any], __user__: dict[str, Any] | None = None, __model__: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Set the effort or the cap, and the preset, of a request that says nothing about its thinking."""
        served = "tersely" in ((__model__ or {}).get("openai") or {})  # the entry in the server's own list of models
        named = body.get("model") in self.valves.models.replace(",", " ").split()
        if not (served or named) or any(name in body for name in CONTROLS):
            return body
        chosen = getattr((__user__ or {}).get("valves"), "reasoning_effort", "")
        if effort := chosen or self.valves.reasoning_effort:
            body["reasoning_effort"] = effort
        elif self.valves.thinking_tokens:
            body["thinking_token_budget"] = self.valves.thinking_tokens
        if self.valves.preset:
            body["tersely"] = {"preset": self.valves.preset}
        return body

    def stream(self, event: dict[str, Any]) -> dict[str, Any]:
        """Keep the budget, and what ended the thinking, with the usage of the message."""
        for choice in event.get("choices") or ():
            if report := choice.get("tersely"):
                ended = [f"{d['policy']}: {d['reason']}" for d in report.get("decisions", ()) if d["action"] == "close"]
                kept = {"budget": report.get("budget"), "ended": ended[-1] if ended else "by itself"}
                event["usage"] = {**(event.get("usage") or {}), "tersely": kept}
        return event

    async def outlet(
        self, body: dict[str, Any], __event_emitter__: Callable[[dict[str, Any]], Awaitable[None]] | None = None
    ) -> dict[str, Any]:
        """Show what the last reply cost, if its usage is there; the text is not changed."""
        messages = body.get("messages") or [{}]
        usage = messages[-1].get("usage") or {}
        thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        if thought is None or __event_emitter__ is None or not self.valves.show_usage:
            return body
        answered = max(0, (usage.get("completion_tokens") or 0) - thought)
        text = f"{thought} thinking and {answered} answer tokens"
        kept = usage.get("tersely") or {}
        if budget := kept.get("budget"):
            text += f", {max(0, budget - thought)} of the budget saved; the thinking ended {kept['ended']}"
        await __event_emitter__({"type": "status", "data": {"description": text, "done": True}})
        return body
