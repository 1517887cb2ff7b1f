"""Ways for an agent to go about its tasks, to be compared: how much it thinks, and whether it may use tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel

from ...controller.agents.middleware import BudgetMiddleware, EffortMiddleware, SafetyMiddleware
from ...controller.agents.modes import MODES, ModeMiddleware, Router
from ...errors import OptionError, unknown
from .tasks import Task
from .tools import tools_of

ALWAYS, ROUTED = "always-think", "routed"
ARMS = (ALWAYS, *MODES, ROUTED)
HARD = {"plan": "hard", "result": "hard", "error": "hard", "answer": "hard"}
FORM = "Give the final answer in \\boxed{}, several names separated by semicolons."
REPEATS = 3


def agents_of(
    arm: str, model: BaseChatModel, router: Router | None = None, system: str | None = FORM
) -> Callable[[Task], Any]:
    """Makes the agent of an arm for a task, with the tools of its world.

    `always-think` has tools and thinks hard at every step; `agentic` thinks hard where it plans and little after
    results; `instant` and `reasoning` have no tools; `routed` is one of these three for each task, as the router says.
    Raises OptionError for an unknown arm, or one without the router it needs.
    """
    if arm not in ARMS:
        raise unknown("arm", arm, ARMS)
    if arm == ROUTED and router is None:
        raise OptionError(f"arm {ROUTED!r} needs a router; learn one, and give its folder (--router)")
    route = router if arm == ROUTED and router is not None else arm

    def agent(task: Task) -> Any:
        middleware = [
            SafetyMiddleware(),
            BudgetMiddleware(repeats=REPEATS),
            *([EffortMiddleware(HARD)] if arm == ALWAYS else [EffortMiddleware(), ModeMiddleware(route)]),
        ]
        return create_agent(model, tools_of(task.world), middleware=middleware, system_prompt=system)

    return agent
