"""Middleware for `langchain.agents.create_agent`: how much thinking a step gets, from whom, at what cost."""

from __future__ import annotations

import asyncio
import inspect
import operator
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest
from langchain.agents.middleware.types import ExtendedModelResponse, OmitFromInput
from langchain_core.language_models import BaseChatModel
from langgraph.types import Command

from ....errors import OptionError, unknown
from ...budgets import canonical_effort
from .budget_middleware import BudgetMiddleware as BudgetMiddleware
from .effort_steps import STEPS, TABLE, classify_step, effort_settings, max_effort, min_effort
from .safety_middleware import SafetyMiddleware as SafetyMiddleware

Chooser = Callable[[ModelRequest[Any]], "str | Awaitable[str]"]


class EffortState(AgentState):
    """What `EffortMiddleware` keeps: a record of each step, in the agent's output under `tersely_steps`."""

    tersely_steps: NotRequired[  # type: ignore[valid-type]  # the base is unknown here
        Annotated[list[dict[str, Any]], OmitFromInput, operator.add]
    ]


class EffortMiddleware(AgentMiddleware):
    """Chooses the effort of each model call: none, easy, normal, hard, or auto for a ChatTersely that finds out itself.

    choose: a table from `STEPS` to efforts, in which missing ones are those of `TABLE`; or a function of the request,
    which may be async if the agent is. route: models that take the place of the agent's own at an effort. settings:
    how a model is told its effort. The ceiling of a `BudgetMiddleware` is kept, whichever of the two comes first.
    """

    state_schema = EffortState

    def __init__(
        self,
        choose: Mapping[str, str] | Chooser = TABLE,
        *,
        route: Mapping[str, BaseChatModel] | None = None,
        settings: Callable[[BaseChatModel, str], Mapping[str, Any]] = effort_settings,
    ) -> None:
        super().__init__()
        self.route = {canonical_effort(effort): model for effort, model in (route or {}).items()}
        self.settings = settings
        self.choose = choose if callable(choose) else _by_table(choose)

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """See `AgentMiddleware.wrap_model_call`."""
        effort = self.choose(request)
        if not isinstance(effort, str):
            if inspect.iscoroutine(effort):
                effort.close()
            raise OptionError("the function that chooses efforts is async; run the agent by ainvoke or astream")
        asked, record = self._asked(request, effort)
        return _recorded(handler(asked), record)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `AgentMiddleware.awrap_model_call`; a function that is not async chooses in a thread."""
        effort = await asyncio.to_thread(self.choose, request)
        asked, record = self._asked(request, effort if isinstance(effort, str) else await effort)
        return _recorded(await handler(asked), record)

    def _asked(self, request: ModelRequest[Any], effort: str) -> tuple[ModelRequest[Any], dict[str, Any]]:
        """The request with that effort, and a record of it."""
        chosen = canonical_effort(effort)
        given = min_effort(chosen, max_effort(request.state))
        model = self.route.get(given, request.model)
        settings = {**request.model_settings, **self.settings(model, given)}
        step = classify_step(request.messages, bool(request.tools))
        record = {"step": step, "effort": given, "chosen": chosen, "routed": given in self.route}
        return request.override(model=model, model_settings=settings), record


def _by_table(given: Mapping[str, str]) -> Callable[[ModelRequest[Any]], str]:
    for step, effort in given.items():
        if step not in STEPS:
            raise unknown("kind of step", step, STEPS)
        canonical_effort(effort)
    table = {**TABLE, **given}
    return lambda request: table[classify_step(request.messages, bool(request.tools))]


def _recorded(response: Any, record: dict[str, Any]) -> ExtendedModelResponse[Any]:
    return ExtendedModelResponse(response, Command(update={"tersely_steps": [record]}))
