"""Three ways to take a question: answer at once, think, or work with tools (A2FM, arXiv 2510.12838)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentState, ModelRequest
from langchain.agents.middleware.types import OmitFromInput
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from ....errors import OptionError, unknown
from ...budgets import canonical_effort
from .effort_steps import effort_settings, max_effort, min_effort
from .request_middleware import RequestMiddleware

MODES = ("instant", "reasoning", "agentic")
"""From the cheapest to the dearest."""

EFFORTS: Mapping[str, str] = {"instant": "none", "reasoning": "hard"}

Router = Callable[[Sequence[BaseMessage]], "str | Awaitable[str]"]
Gate = Callable[[ModelRequest[Any]], bool]


class ModeState(AgentState):
    """The mode of the run at hand, in the agent's output; no input sets it."""

    tersely_mode: NotRequired[Annotated[str, OmitFromInput]]  # type: ignore[valid-type]  # the base is unknown here


class ModeMiddleware(RequestMiddleware):
    """Chooses for each run of an agent whether to answer at once, to think, or to work with tools.

    route: a mode, or a function of the conversation that says one, which may be async if the agent is. Without tools
    (`instant`, `reasoning`) the model is offered none and thinks with the effort that `efforts` names; with them
    (`agentic`) efforts stay what they are. gate: says at each step of agentic work whether a tool may still be
    needed; where not, the model is offered none and has to answer. The ceiling of a `BudgetMiddleware` is kept. Put
    it after an `EffortMiddleware`, whose effort it replaces where it works without tools.
    """

    state_schema = ModeState

    def __init__(
        self,
        route: str | Router,
        *,
        gate: Gate | None = None,
        efforts: Mapping[str, str] = EFFORTS,
        settings: Callable[[BaseChatModel, str], Mapping[str, Any]] = effort_settings,
    ) -> None:
        super().__init__()
        if isinstance(route, str):
            _known(route)
        for mode, effort in efforts.items():
            if mode not in EFFORTS:
                raise unknown("mode with an effort", mode, EFFORTS)
            canonical_effort(effort)
        self.route, self.gate, self.settings = route, gate, settings
        self.efforts = {**EFFORTS, **efforts}

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Choose the mode."""
        mode = self.route if isinstance(self.route, str) else self.route(state["messages"])
        if not isinstance(mode, str):
            if inspect.iscoroutine(mode):
                mode.close()
            raise OptionError("the function that chooses modes is async; run the agent by ainvoke or astream")
        return {"tersely_mode": _known(mode)}

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """See `before_agent`; a function that is not async chooses in a thread."""
        if isinstance(self.route, str):
            return {"tersely_mode": self.route}
        mode = await asyncio.to_thread(self.route, state["messages"])
        return {"tersely_mode": _known(mode if isinstance(mode, str) else await mode)}

    def _asked(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        state: Any = request.state
        mode: str = state["tersely_mode"]
        if mode == "agentic":
            needed = self.gate is None or not request.tools or self.gate(request)
            return request if needed else request.override(tools=[], tool_choice=None)
        effort = min_effort(self.efforts[mode], max_effort(state))
        settings = {**request.model_settings, **self.settings(request.model, effort)}
        return request.override(tools=[], tool_choice=None, model_settings=settings)


def _known(mode: str) -> str:
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    return mode


def correctness_within_budget(success: Mapping[str, float], alpha: float = 2.0, easy: float = 0.5) -> dict[str, float]:
    """What each mode is worth by APO's reward: success, less where a question is easy and the mode is not `instant`.

    success: the chance of each mode. A question is easy if `instant` succeeds with more than `easy` (the paper gives
    no number; ours), and a dearer mode is then worth 1 - p^alpha of its success, p being that of `instant`.
    """
    instant = success.get("instant", 0.0)
    discount = 1 - instant**alpha if instant > easy else 1.0
    return {mode: chance * (1.0 if mode == "instant" else discount) for mode, chance in success.items()}
