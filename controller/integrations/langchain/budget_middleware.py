"""`BudgetMiddleware`: limits what an agent spends on one question, and makes it answer when the budget is spent."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import ExtendedModelResponse, PrivateStateAttr
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langgraph.types import Command

from ....errors import OptionError, check_known
from .chat_model import effort_settings, get_effort

SHARES: Mapping[str, float] = {"normal": 0.5, "easy": 0.75, "none": 0.9}
"""The spent share of a budget from which on a step gets at most this effort."""

FINAL_INSTRUCTION = (
    "There is no budget for further steps. Answer the question now from what is known so far, say what remains open, "
    "and call no tools."
)
SPENT = "tersely_spent"  # the key of the agent's state that holds what has been spent

_ORDER = ("none", "easy", "normal", "hard")


def max_effort(state: Any) -> str | None:
    """The most effort that the budget allows the next step; None for any."""
    ceiling: str | None = (state.get(SPENT) or {}).get("ceiling")
    return ceiling


def min_effort(effort: str, ceiling: str | None) -> str:
    """The lower of two efforts; `auto` may turn out to be any, so the ceiling replaces it."""
    if ceiling is None or effort == ceiling:
        return effort
    if effort not in _ORDER:
        return ceiling
    return _ORDER[min(_ORDER.index(effort), _ORDER.index(ceiling))]


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What an agent may spend on a question; prices are dollars per million (input, output) tokens by model, or "*"."""

    tokens: int | None = None
    dollars: float | None = None
    seconds: float | None = None
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "dollars", "seconds"):
            if (limit := getattr(self, name)) is not None and limit <= 0:
                raise OptionError(f"the budget is {limit} {name}; accepted: more than 0, or None for no limit")
        if self.dollars is not None and not self.prices:
            raise OptionError(
                "a budget in dollars needs prices={model: (input, output)}, per million tokens", code="missing_price"
            )

    def price(self, model: str) -> tuple[float, float]:
        """Dollars per million input and output tokens; raises OptionError for a model without a price."""
        price = self.prices.get(model, self.prices.get("*"))
        if price is None:
            raise OptionError(
                f"no price for the model {model!r}; prices are given for {', '.join(self.prices)}; add this model, or "
                "'*' for any",
                code="missing_price",
            )
        return price

    def spent_share(self, spent: Mapping[str, Any], now: float) -> tuple[float, str]:
        """The spent share of the limit that is closest, and a description of it."""
        used = {"tokens": spent["tokens"], "dollars": spent["dollars"], "seconds": now - spent["started"]}
        shares = [
            (used[name] / limit, f"{used[name]:.6g} of {limit:g} {name}")
            for name in used
            if (limit := getattr(self, name)) is not None
        ]
        return max(shares, default=(0.0, "no limit"))

    def add_call(self, spent: Mapping[str, Any], prompt: Sequence[BaseMessage], message: AIMessage) -> dict[str, Any]:
        read, written = count_tokens(prompt, message)
        dollars = spent["dollars"]
        if self.dollars is not None:
            input_price, output_price = self.price(str(message.response_metadata.get("model_name", "")))
            dollars += (read * input_price + written * output_price) / 1e6
        return {**spent, "tokens": spent["tokens"] + read + written, "dollars": dollars}


def count_tokens(prompt: Sequence[BaseMessage], message: AIMessage) -> tuple[int, int]:
    """Tokens that a model call read and wrote, with tersely's overhead; estimated if the model reports no usage."""
    usage: Mapping[str, Any] = message.usage_metadata or {
        "input_tokens": count_tokens_approximately(prompt),
        "output_tokens": count_tokens_approximately([message]),
    }
    overhead = message.response_metadata.get("tersely", {}).get("usage", {}).get("overhead", 0)
    return max(0, usage["input_tokens"]), max(0, usage["output_tokens"]) + max(0, overhead)


def repeated_tool_call(messages: Sequence[BaseMessage], calls: Sequence[Mapping[str, Any]], limit: int) -> str | None:
    """The tool among `calls` that is called with the same arguments for the `limit`-th time since the last question."""
    earlier = [call for message in current_turn(messages) for call in getattr(message, "tool_calls", ())]
    counts: Counter[str] = Counter()
    for number, call in enumerate([*earlier, *calls]):
        key = json.dumps([call["name"], call["args"]], sort_keys=True, default=str)
        counts[key] += 1
        if number >= len(earlier) and counts[key] >= limit:
            return str(call["name"])
    return None


def tool_results_text(messages: Sequence[BaseMessage], limit: int = 2000) -> str:
    """The results of tools since the last question, oldest first; the last `limit` characters of them."""
    results = [m for m in current_turn(messages) if isinstance(m, ToolMessage) and m.text.strip()]
    return "\n".join(f"{message.name or 'tool'}: {message.text.strip()}" for message in results)[-limit:]


def current_turn(messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
    """The messages since the last question."""
    questions = [place for place, message in enumerate(messages) if isinstance(message, HumanMessage)]
    return messages[questions[-1] + 1 :] if questions else messages


class BudgetState(AgentState):
    """State of `BudgetMiddleware`: what has been spent on the current question. An agent's input cannot set it."""

    tersely_spent: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]  # type: ignore[valid-type]  # base unknown


class BudgetMiddleware(AgentMiddleware):
    """Limits what an agent spends on one question, and makes it answer from what is known when the budget is spent.

    One run of an agent is one question; a run that resumes after an interrupt keeps its budget. No model call is cut
    short, so the last one and the final answer come on top. Errors of models and tools are left to the framework.
    """

    state_schema = BudgetState

    def __init__(
        self,
        *,
        tokens: int | None = None,  # read and written, tersely's overhead included
        dollars: float | None = None,  # by `prices`, see `AgentLimits`
        seconds: float | None = None,  # of wall time
        prices: Mapping[str, tuple[float, float]] | None = None,
        repeats: int | None = 3,  # a tool called so often with the same arguments ends the question
        last_call: bool = True,  # without it, the results of the tools are the answer
        answer_tokens: int = 256,  # of the last call, which has no tools
        shares: Mapping[str, float] = SHARES,  # from which spent share a step gets at most which effort
        settings: Callable[[BaseChatModel, str], Mapping[str, Any]] = effort_settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.limits = AgentLimits(tokens, dollars, seconds, dict(prices or {}))
        if repeats is not None and repeats < 2:
            raise OptionError(f"repeats is {repeats}; accepted: 2 or more, or None for any number")
        check_known("effort in shares", shares, SHARES)
        self.repeats, self.last_call, self.answer_tokens = repeats, last_call, answer_tokens
        self.shares, self.settings, self.clock = dict(shares), settings, clock

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        return {SPENT: {"tokens": 0, "dollars": 0.0, "started": self.clock(), "ceiling": None, "over": None}}

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Set the ceiling of the next step, or end here if the budget is spent and no last call is wanted."""
        share, description = self.limits.spent_share(state[SPENT], self.clock())
        ceiling = None
        for effort, threshold in self.shares.items():
            if share >= threshold:
                ceiling = min_effort(effort, ceiling)
        over = f"the budget is spent: {description}" if share >= 1 else None
        update: dict[str, Any] = {SPENT: {**state[SPENT], "ceiling": ceiling, "over": over}}
        if over is not None and not self.last_call:
            update |= {"jump_to": "end", "messages": [_final_message(AIMessage(""), over, state["messages"])]}
        return update

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        turn = _Turn(self, request)
        response = handler(turn.first_request)
        if turn.needs_last_call(response):
            response = handler(turn.last_request())
        return turn.finish(response)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        turn = _Turn(self, request)
        response = await handler(turn.first_request)
        if turn.needs_last_call(response):
            response = await handler(turn.last_request())
        return turn.finish(response)


class _Turn:
    """One model call, and the last call after it if there is one; `over` says why the question ends, if it does."""

    def __init__(self, budget: BudgetMiddleware, request: ModelRequest[Any]) -> None:
        self.budget, self.request = budget, request
        self.spent: dict[str, Any] = request.state[SPENT]
        self.over: str | None = self.spent["over"]
        self.first_request = self._limited_request() if self.over is None else self.last_request()

    def _limited_request(self) -> ModelRequest[Any]:
        """The request with the effort and the length that the budget still allows."""
        request, limits = self.request, self.budget.limits
        settings = {**request.model_settings}
        effort = get_effort(request.model, settings)
        if (allowed := min_effort(effort, self.spent["ceiling"])) != effort:
            settings |= self.budget.settings(request.model, allowed)
        max_tokens = _get_max_tokens(request.model, settings)
        if limits.tokens is not None and max_tokens is not None:
            left = max(limits.tokens - self.spent["tokens"], self.budget.answer_tokens)
            if left < max_tokens:
                settings["max_tokens"] = left
        if limits.dollars is not None:
            limits.price(str(request.model._get_ls_params().get("ls_model_name", "")))  # raises before money is spent
        return request.override(model_settings=settings)

    def last_request(self) -> ModelRequest[Any]:
        request = self.request
        max_tokens = _get_max_tokens(request.model, request.model_settings)
        limit = self.budget.answer_tokens if max_tokens is None else min(max_tokens, self.budget.answer_tokens)
        settings = {**request.model_settings, **self.budget.settings(request.model, "none"), "max_tokens": limit}
        messages = [*request.messages, HumanMessage(FINAL_INSTRUCTION)]
        state: Any = {**request.state, SPENT: {**self.spent, "ceiling": "none"}}
        return request.override(tools=[], tool_choice=None, messages=messages, model_settings=settings, state=state)

    def needs_last_call(self, response: ModelResponse[Any]) -> bool:
        """Whether the model repeats a tool call too often and a last call, after this one, should answer instead."""
        limit = self.budget.repeats
        if self.over is not None or limit is None:
            return False
        calls = [call for message in response.result for call in getattr(message, "tool_calls", ())]
        name = repeated_tool_call(self.request.messages, calls, limit)
        if name is None:
            return False
        self.over = f"tool {name} was called {limit} times with identical arguments"
        if self.budget.last_call:
            self._add_cost(response)
        return self.budget.last_call

    def _add_cost(self, response: ModelResponse[Any]) -> None:
        for message in response.result:
            if isinstance(message, AIMessage):
                self.spent = self.budget.limits.add_call(self.spent, self.request.messages, message)

    def finish(self, response: ModelResponse[Any]) -> ExtendedModelResponse[Any]:
        """The last response, turned into a final answer if the question ends, and an update of what has been spent."""
        self._add_cost(response)
        if self.over is not None and response.structured_response is None:
            answer = next(m for m in response.result if isinstance(m, AIMessage))
            response = ModelResponse([_final_message(answer, self.over, self.request.messages)])
        update = {SPENT: {**self.spent, "over": self.over}}
        return ExtendedModelResponse(response, Command(update=update))


def _final_message(answer: AIMessage, reason: str, messages: Sequence[BaseMessage]) -> AIMessage:
    """A message without tool calls that ends the question; the results of tools replace an empty answer."""
    content = answer.content
    if not answer.text.strip() or answer.tool_calls:
        results = tool_results_text(messages)
        content = f"Stopped because {reason}. " + (
            f"Known so far:\n{results}" if results else "Nothing is known so far."
        )
    return AIMessage(
        content=content,
        id=answer.id,
        additional_kwargs=answer.additional_kwargs,
        usage_metadata=answer.usage_metadata,
        response_metadata={**answer.response_metadata, "tersely_budget": reason},
    )


def _get_max_tokens(model: BaseChatModel, settings: Mapping[str, Any]) -> int | None:
    limit: int | None = settings.get("max_tokens") or getattr(model, "max_tokens", None)
    return limit or (model.profile or {}).get("max_output_tokens")
