"""Ways for an agent to go about its tasks, to be compared: how much it thinks, and whether it may use tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel

from ...controller.integrations.langchain.chat_model import ChatTersely
from ...controller.integrations.langchain.middleware import (
    MODES,
    BudgetMiddleware,
    EffortMiddleware,
    ModeMiddleware,
    Router,
    SafetyMiddleware,
)
from ...controller.policies import make_policies
from ...errors import OptionError, unknown
from .tasks import FORM, Task
from .tools import tools_for

ALWAYS, ROUTED = "always-think", "routed"
ARMS = (ALWAYS, *MODES, ROUTED)
HARD = {"plan": "hard", "result": "hard", "error": "hard", "answer": "hard"}
REPEATS = 3


def resolve_mode(arm: str) -> tuple[str, str | None]:
    """The way of an arm, and the preset that it names; raises OptionError for unknown ones."""
    way, plus, preset = arm.partition("+")
    if way not in ARMS:
        raise unknown("arm", way, ARMS)
    if plus:
        make_policies(preset)
    return way, preset if plus else None


def make_agents(
    arm: str, model: BaseChatModel, router: Router | None = None, system: str | None = FORM
) -> Callable[[Task], Any]:
    """Makes the agent of an arm for a task, with the tools of its world.

    `always-think` has tools and thinks hard at every step; `agentic` thinks hard where it plans and little after
    results; `instant` and `reasoning` have no tools; `routed` is one of these three for each task, as the router says.
    With `+PRESET` after it, an arm's ChatTersely thinks under that preset. Raises OptionError for an unknown arm or
    preset, or one without the router it needs.
    """
    way, preset = resolve_mode(arm)
    if way == ROUTED and router is None:
        raise OptionError(f"arm {ROUTED!r} needs a router; learn one, and give its folder (--router)")
    route = router if way == ROUTED and router is not None else way
    if preset is not None:
        if not isinstance(model, ChatTersely):
            raise OptionError(f"arm {arm!r} names a preset, which only a model that is loaded here thinks under")
        model = model.model_copy(update={"preset": preset})

    def agent(task: Task) -> Any:
        middleware = [
            SafetyMiddleware(),
            BudgetMiddleware(repeats=REPEATS),
            *([EffortMiddleware(HARD)] if way == ALWAYS else [EffortMiddleware(), ModeMiddleware(route)]),
        ]
        return create_agent(model, tools_for(task.world), middleware=middleware, system_prompt=system)

    return agent
