"""Tasks of agents in a training: drawn again from its recipe, their calls carried out, their answers judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..controller.text.tool_calls import ToolCall
from ..evaluation.agents.tasks import KINDS, Task, draw_tasks
from ..evaluation.agents.tools import ToolError, call_tool
from .config import Data

AGENTS = "agents"


def load_tasks(data: Data) -> list[Task] | None:
    """The tasks that `agents`, or `agents:KIND,KIND`, names; None for questions without tools. Raises OptionError."""
    name, _, kinds = data.task.partition(":")
    if name != AGENTS:
        return None
    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else KINDS
    return draw_tasks(data.split, data.seed, data.questions, chosen)


class Environment:
    """The worlds of some tasks, by the ids of these."""

    def __init__(self, known: Sequence[Task]) -> None:
        self._tasks: Mapping[str, Task] = {task.id: task for task in known}

    def turns(self, task: str, said: str, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        """The turns that follow from calls: the model's own, and the result of each, or what is wrong with it."""
        world = self._tasks[task].world
        made = [call for call in calls if call.error is None]
        broken = "".join(call.text for call in calls if call.error is not None)
        functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in made]
        own: dict[str, Any] = {"role": "assistant", "content": f"{said}{broken}"}
        if made:
            own["tool_calls"] = [{"type": "function", "function": function} for function in functions]
        results = []
        for call in calls:
            try:
                if call.error is not None or call.name is None:
                    raise ToolError(f"that is no call: {call.error}")
                text = call_tool(world, call.name, call.arguments)
            except ToolError as error:
                text = str(error)
            results.append({"role": "tool", "content": text})
        return [own, *results]

    def solved(self, task: str, answer: str) -> bool:
        """Whether an answer says what is right and no more."""
        return self._tasks[task].solved_by(answer)


def load_environment(data: Data) -> Environment | None:
    """The environment of a recipe's tasks, None for questions without tools."""
    found = load_tasks(data)
    return None if found is None else Environment(found)
