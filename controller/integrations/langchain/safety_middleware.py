"""Middleware that lets no text of a tool be more than text, and no tool touch what an agent may spend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from langchain.agents.middleware import ModelRequest
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.types import Command

from .chat_model import ChatTersely
from .request_middleware import RequestMiddleware
from .safety import SpecialTokenSanitizer, get_sanitizer

OURS = "tersely_"
"""What the keys of an agent's state begin with that are kept here and no tool may set."""


class SafetyMiddleware(RequestMiddleware):
    """Neutralises what tools return (see `safety`), and results that came in with the conversation.

    tokenizer: of the model that reads them; None takes that of each ChatTersely, and of other models the common markers
    alone.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        super().__init__()
        self.neutralise = SpecialTokenSanitizer() if tokenizer is None else get_sanitizer(tokenizer)
        self._own = tokenizer is not None

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """See `AgentMiddleware.wrap_tool_call`."""
        return self._safe(handler(request))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """See `AgentMiddleware.awrap_tool_call`."""
        return self._safe(await handler(request))

    def _asked(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """The request with the results in it neutralised; a ChatTersely does that itself, by its own tokenizer."""
        if isinstance(request.model, ChatTersely) and not self._own:
            return request
        return request.override(messages=[self._message(message) for message in request.messages])

    def _message(self, message: Any) -> Any:
        if not isinstance(message, ToolMessage):
            return message
        return message.model_copy(update={"content": self.neutralise.content(message.content)})

    def _safe(self, result: Any) -> Any:
        """What a tool returned, a message or a command, as it may enter the agent's state."""
        if isinstance(result, Command):
            update = result.update
            if isinstance(update, (Mapping, list, tuple)):
                pairs = update.items() if isinstance(update, Mapping) else update
                update = [(key, self._value(key, value)) for key, value in pairs if not str(key).startswith(OURS)]
            return replace(result, update=update)
        return self._message(result)

    def _value(self, key: str, value: Any) -> Any:
        if key != "messages":
            return value
        return [self._message(message) for message in (value if isinstance(value, list) else [value])]
