"""Middleware that holds an agent's spending on one question within limits, and has it answer at their end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import ExtendedModelResponse, PrivateStateAttr
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.types import Command

from ....errors import OptionError, unknown
from .effort_steps import SPENT, effort_settings, get_effort, min_effort
from .limits import AgentLimits, repeated_tool_call, tool_results_text

SHARES: Mapping[str, float] = {"normal": 0.5, "easy": 0.75, "none": 0.9}
"""From which share of a budget on a step gets this effort at most."""

FINISH = (
    "There is no budget for further steps. Answer the question now from what is known so far, say what remains open, "
    "and call no tools."
)


class BudgetState(AgentState):
    """What has been spent on the question at hand; no input of an agent sets it."""

    tersely_spent: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]  # type: ignore[valid-type]  # base unknown


class BudgetMiddleware(AgentMiddleware):
    """Holds what an agent spends on one question within limits, and has it answer from what is known at their end.

    tokens: read and written, those that tersely spends beside the text included. dollars: by `prices`, see
    `AgentLimits`.
    seconds: of wall time. shares: how efforts go down as the scarcest is used up. At its end a last call without
    tools answers, in at most `answer_tokens`; with last_call False what tools have said stands for the answer. repeats:
    a tool that is called for so many times with the same arguments is not carried out, and that ends the question in
    the same way; None allows any number. No call is cut short: what the one under way takes comes on top.

    One run of an agent is one question; a run that goes on after an interrupt goes on with its budget. Errors of models
    and tools are the framework's to handle.
    """

    state_schema = BudgetState

    def __init__(
        self,
        *,
        tokens: int | None = None,
        dollars: float | None = None,
        seconds: float | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
        repeats: int | None = 3,
        last_call: bool = True,
        answer_tokens: int = 256,
        shares: Mapping[str, float] = SHARES,
        settings: Callable[[BaseChatModel, str], Mapping[str, Any]] = effort_settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.limits = AgentLimits(tokens, dollars, seconds, dict(prices or {}))
        if repeats is not None and repeats < 2:
            raise OptionError(f"repeats is {repeats}; accepted: 2 or more, or None for any number")
        for effort in shares:
            if effort not in SHARES:
                raise unknown("effort in shares", effort, SHARES)
        self.repeats, self.last_call, self.answer_tokens = repeats, last_call, answer_tokens
        self.shares, self.settings, self.clock = dict(shares), settings, clock

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Begin to count."""
        return {SPENT: {"tokens": 0, "dollars": 0.0, "started": self.clock(), "ceiling": None, "over": None}}

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """See `before_agent`."""
        return self.before_agent(state, runtime)

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Say what the next step may take; end here where no last call is wanted."""
        share, words = self.limits.share(state[SPENT], self.clock())
        ceiling = None
        for effort, reached in self.shares.items():
            if share >= reached:
                ceiling = min_effort(effort, ceiling)
        over = f"the budget is spent: {words}" if share >= 1 else None
        update: dict[str, Any] = {SPENT: {**state[SPENT], "ceiling": ceiling, "over": over}}
        if over is not None and not self.last_call:
            update |= {"jump_to": "end", "messages": [_ended(AIMessage(""), over, state["messages"])]}
        return update

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        """See `before_model`."""
        update: dict[str, Any] = self.before_model(state, runtime)
        return update

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """See `AgentMiddleware.wrap_model_call`."""
        turn = _TurnBudget(self, request)
        response = handler(turn.asked)
        turn.heard(response)
        if turn.needs_last_call(response):
            response = handler(turn.last_request())
            turn.heard(response)
        return turn.result(response)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `AgentMiddleware.awrap_model_call`."""
        turn = _TurnBudget(self, request)
        response = await handler(turn.asked)
        turn.heard(response)
        if turn.needs_last_call(response):
            response = await handler(turn.last_request())
            turn.heard(response)
        return turn.result(response)


class _TurnBudget:
    """One model call with what it costs; over: why there is no further one, None while there may be."""

    def __init__(self, budget: BudgetMiddleware, request: ModelRequest[Any]) -> None:
        self.budget, self.request = budget, request
        self.spent: dict[str, Any] = request.state[SPENT]
        self.over: str | None = self.spent["over"]
        self._last = self.over is not None
        self.asked = self.last_request() if self._last else self._within()

    def _within(self) -> ModelRequest[Any]:
        """The request with the effort and the length that the budget still allows."""
        request, limits = self.request, self.budget.limits
        settings = {**request.model_settings}
        effort = get_effort(request.model, settings)
        if (allowed := min_effort(effort, self.spent["ceiling"])) != effort:
            settings |= self.budget.settings(request.model, allowed)
        longest = _longest(request.model, settings)
        if limits.tokens is not None and longest is not None:
            left = max(limits.tokens - self.spent["tokens"], self.budget.answer_tokens)
            if left < longest:
                settings["max_tokens"] = left
        if limits.dollars is not None:
            limits.price(_name(request.model))  # says so before the money is spent
        return request.override(model_settings=settings)

    def last_request(self) -> ModelRequest[Any]:
        """The request for an answer without tools."""
        request = self.request
        longest = _longest(request.model, request.model_settings)
        most = self.budget.answer_tokens if longest is None else min(longest, self.budget.answer_tokens)
        settings = {**request.model_settings, **self.budget.settings(request.model, "none"), "max_tokens": most}
        messages = [*request.messages, HumanMessage(FINISH)]
        state: Any = {**request.state, SPENT: {**self.spent, "ceiling": "none"}}
        return request.override(tools=[], tool_choice=None, messages=messages, model_settings=settings, state=state)

    def heard(self, response: ModelResponse[Any]) -> None:
        """Count what a call has cost."""
        for message in response.result:
            if isinstance(message, AIMessage):
                self.spent = self.budget.limits.added(self.spent, self.request.messages, message)

    def needs_last_call(self, response: ModelResponse[Any]) -> bool:
        """Whether the model asks for what it has asked for too often, and a last call should answer instead."""
        most = self.budget.repeats
        if self._last or most is None:
            return False
        calls = [call for message in response.result for call in getattr(message, "tool_calls", ())]
        name = repeated_tool_call(self.request.messages, calls, most)
        if name is None:
            return False
        self._last = True
        self.over = f"the tool {name} was to be called for the {most}. time with the same arguments"
        return self.budget.last_call

    def result(self, response: ModelResponse[Any]) -> ExtendedModelResponse[Any]:
        """The response, an answer where there is to be no further step; with it goes what has been spent."""
        if self.over is not None and response.structured_response is None:
            answer = next(m for m in response.result if isinstance(m, AIMessage))
            response = ModelResponse([_ended(answer, self.over, self.request.messages)])
        update = {SPENT: {**self.spent, "over": self.over}}
        return ExtendedModelResponse(response, Command(update=update))


def _ended(answer: AIMessage, reason: str, messages: Sequence[BaseMessage]) -> AIMessage:
    """An answer that ends the question: it calls nothing, and says what is known where it says nothing itself."""
    content = answer.content
    if not answer.text.strip() or answer.tool_calls:
        found = tool_results_text(messages)
        content = f"Stopped, for {reason}. " + (f"Known so far:\n{found}" if found else "Nothing is known so far.")
    return AIMessage(
        content=content,
        id=answer.id,
        additional_kwargs=answer.additional_kwargs,
        usage_metadata=answer.usage_metadata,
        response_metadata={**answer.response_metadata, "tersely_budget": reason},
    )


def _longest(model: BaseChatModel, settings: Mapping[str, Any]) -> int | None:
    """Most tokens the model would write, None where that is not known."""
    known_of: int | None = settings.get("max_tokens") or getattr(model, "max_tokens", None)
    return known_of or (model.profile or {}).get("max_output_tokens")


def _name(model: BaseChatModel) -> str:
    return str(model._get_ls_params().get("ls_model_name", ""))
