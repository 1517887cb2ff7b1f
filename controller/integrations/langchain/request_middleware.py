"""What middleware of one kind shares: it changes what a model is asked, and nothing else about the call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest


class RequestMiddleware(AgentMiddleware):
    """Middleware that has each model asked by the request which `_asked` makes of the agent's."""

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """See `AgentMiddleware.wrap_model_call`."""
        return handler(self._asked(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `AgentMiddleware.awrap_model_call`."""
        return await handler(self._asked(request))

    @abstractmethod
    def _asked(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """The request as the model gets it."""
