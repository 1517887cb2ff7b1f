"""Middleware for `langchain.agents.create_agent`: efforts, budgets, modes, and safety from what tools write."""

from __future__ import annotations

import asyncio
import inspect
import operator
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest
from langchain.agents.middleware.types import ExtendedModelResponse, OmitFromInput, ToolCallRequest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.types import Command

from ....errors import OptionError, check_known
from ...budgets import canonical_effort
from ...text.sanitizer import SpecialTokenSanitizer, get_sanitizer
from .budget_middleware import BudgetMiddleware, current_turn, max_effort, min_effort
from .chat_model import ChatTersely, effort_settings

__all__ = ["MODES", "STEPS", "BudgetMiddleware", "EffortMiddleware", "ModeMiddleware", "Router", "SafetyMiddleware"]

STEPS = ("plan", "result", "error", "answer")
"""Kinds of agent steps: the first one after a question; after a tool's result; after its error; after results, with no
tools offered."""

STEP_EFFORTS: Mapping[str, str] = {"plan": "hard", "result": "easy", "error": "normal", "answer": "normal"}

MODES = ("instant", "reasoning", "agentic")
"""Ways to handle a question, cheapest first: answer at once, think, or use tools (A2FM, arXiv 2510.12838)."""

MODE_EFFORTS: Mapping[str, str] = {"instant": "none", "reasoning": "hard"}

STATE_PREFIX = "tersely_"  # prefix of the agent state's keys that this middleware owns, and that no tool may set

EffortChooser = Callable[[ModelRequest[Any]], "str | Awaitable[str]"]
Router = Callable[[Sequence[BaseMessage]], "str | Awaitable[str]"]
Gate = Callable[[ModelRequest[Any]], bool]
SettingsBuilder = Callable[[BaseChatModel, str], Mapping[str, Any]]


def classify_step(messages: Sequence[BaseMessage], tools: bool) -> str:
    """Which of `STEPS` comes next; `tools` says whether any are offered."""
    results = [message for message in current_turn(messages) if isinstance(message, ToolMessage)]
    if not results:
        return "plan"
    if not tools:
        return "answer"
    return "error" if results[-1].status == "error" else "result"


def _choose(choose: Callable[[Any], str | Awaitable[str]], argument: Any) -> str:
    """Call a user's function; raises OptionError for an async one."""
    choice = choose(argument)
    if isinstance(choice, str):
        return choice
    if inspect.iscoroutine(choice):
        choice.close()
    raise OptionError("the function is async; run the agent with ainvoke or astream", code="async_function")


async def _achoose(choose: Callable[[Any], str | Awaitable[str]], argument: Any) -> str:
    """Call a user's function, in a thread if it is not async."""
    choice = await asyncio.to_thread(choose, argument)
    return choice if isinstance(choice, str) else await choice


class EffortState(AgentState):
    """State of `EffortMiddleware`: a record of each step, which is part of the agent's output."""

    tersely_steps: NotRequired[  # type: ignore[valid-type]  # the base is unknown here
        Annotated[list[dict[str, Any]], OmitFromInput, operator.add]
    ]


class EffortMiddleware(AgentMiddleware):
    """Chooses the effort of each model call: none, easy, normal, hard, or auto (for ChatTersely).

    `choose` is a table from kinds of steps (`STEPS`) to efforts, where missing ones keep their default, or a function
    of the request, which may be async if the agent is. `route` has models that replace the agent's own at an effort,
    and `settings` builds the `model_settings` of an effort. The ceiling of a `BudgetMiddleware` is respected.
    """

    state_schema = EffortState

    def __init__(
        self,
        choose: Mapping[str, str] | EffortChooser = STEP_EFFORTS,
        *,
        route: Mapping[str, BaseChatModel] | None = None,
        settings: SettingsBuilder = effort_settings,
    ) -> None:
        super().__init__()
        self.route = {canonical_effort(effort): model for effort, model in (route or {}).items()}
        self.settings = settings
        if callable(choose):
            self.choose = choose
            return
        check_known("kind of step", choose, STEPS)
        for effort in choose.values():
            canonical_effort(effort)
        table = {**STEP_EFFORTS, **choose}
        self.choose = lambda request: table[classify_step(request.messages, bool(request.tools))]

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        changed, record = self._apply(request, _choose(self.choose, request))
        return ExtendedModelResponse(handler(changed), record)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `AgentMiddleware.awrap_model_call`; a function that is not async chooses in a thread."""
        changed, record = self._apply(request, await _achoose(self.choose, request))
        return ExtendedModelResponse(await handler(changed), record)

    def _apply(self, request: ModelRequest[Any], effort: str) -> tuple[ModelRequest[Any], Command[Any]]:
        """The request with an effort, and the record of the step."""
        chosen = canonical_effort(effort)
        allowed = min_effort(chosen, max_effort(request.state))
        model = self.route.get(allowed, request.model)
        settings = {**request.model_settings, **self.settings(model, allowed)}
        step = classify_step(request.messages, bool(request.tools))
        record = {"step": step, "effort": allowed, "chosen": chosen, "routed": allowed in self.route}
        update = Command(update={"tersely_steps": [record]})
        return request.override(model=model, model_settings=settings), update


class _RequestMiddleware(AgentMiddleware):
    """Middleware that only changes the request to the model."""

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        return handler(self._change_request(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        return await handler(self._change_request(request))

    @abstractmethod
    def _change_request(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """The request as the model gets it."""


class ModeState(AgentState):
    """State of `ModeMiddleware`: the mode of the current run, which is part of the agent's output."""

    tersely_mode: NotRequired[Annotated[str, OmitFromInput]]  # type: ignore[valid-type]  # the base is unknown here


class ModeMiddleware(_RequestMiddleware):
    """Chooses for each run of an agent whether to answer at once, think, or use tools.

    In the modes `instant` and `reasoning` the model is offered no tools and thinks with the mode's effort; in `agentic`
    the efforts stay as they are. The ceiling of a `BudgetMiddleware` is respected. Place it after an
    `EffortMiddleware`.

    `route` is a mode, or a function of the conversation that returns one, which may be async if the agent is. `gate`
    decides at each `agentic` step whether tools may still be needed; if not, the model has to answer. `efforts` are
    those of the modes without tools; `settings` builds the `model_settings` of an effort.
    """

    state_schema = ModeState

    def __init__(
        self,
        route: str | Router,
        *,
        gate: Gate | None = None,
        efforts: Mapping[str, str] = MODE_EFFORTS,
        settings: SettingsBuilder = effort_settings,
    ) -> None:
        super().__init__()
        if isinstance(route, str):
            fixed = _check_mode(route)
            self.route: Router = lambda messages: fixed
        else:
            self.route = route
        check_known("mode with an effort", efforts, MODE_EFFORTS)
        for effort in efforts.values():
            canonical_effort(effort)
        self.gate, self.settings = gate, settings
        self.efforts = {**MODE_EFFORTS, **efforts}

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Choose the mode."""
        return {"tersely_mode": _check_mode(_choose(self.route, state["messages"]))}

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """See `before_agent`; a function that is not async chooses in a thread."""
        return {"tersely_mode": _check_mode(await _achoose(self.route, state["messages"]))}

    def _change_request(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        state: Any = request.state
        mode: str = state["tersely_mode"]
        if mode == "agentic":
            needs_tools = self.gate is None or not request.tools or self.gate(request)
            return request if needs_tools else request.override(tools=[], tool_choice=None)
        effort = min_effort(self.efforts[mode], max_effort(state))
        settings = {**request.model_settings, **self.settings(request.model, effort)}
        return request.override(tools=[], tool_choice=None, model_settings=settings)


def _check_mode(mode: str) -> str:
    check_known("mode", mode, MODES)
    return mode


class SafetyMiddleware(_RequestMiddleware):
    """Sanitizes tool output, both new results and those that came with the conversation, and protects the state.

    By default each ChatTersely uses its own `tokenizer`, and for other models only the common markers are broken.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        super().__init__()
        self.sanitize = SpecialTokenSanitizer() if tokenizer is None else get_sanitizer(tokenizer)
        self._has_tokenizer = tokenizer is not None

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        return self._sanitize_result(handler(request))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        return self._sanitize_result(await handler(request))

    def _change_request(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        if isinstance(request.model, ChatTersely) and not self._has_tokenizer:
            return request  # it sanitizes by its own tokenizer
        return request.override(messages=[self._sanitize_message(message) for message in request.messages])

    def _sanitize_message(self, message: Any) -> Any:
        if not isinstance(message, ToolMessage):
            return message
        return message.model_copy(update={"content": self.sanitize.sanitize_content(message.content)})

    def _sanitize_result(self, result: Any) -> Any:
        """What a tool returned, a message or a command, as it may enter the agent's state."""
        if not isinstance(result, Command):
            return self._sanitize_message(result)
        update = result.update
        if isinstance(update, (Mapping, list, tuple)):
            items = update.items() if isinstance(update, Mapping) else update
            update = [(key, value) for key, value in items if not str(key).startswith(STATE_PREFIX)]
            for place, (key, value) in enumerate(update):
                if key == "messages":
                    messages = value if isinstance(value, list) else [value]
                    update[place] = key, [self._sanitize_message(message) for message in messages]
        return replace(result, update=update)
