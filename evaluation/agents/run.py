"""Play every arm on the same tasks, each episode once whatever happens in between, and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from ...controller.integrations.langchain.middleware import MODES, Router
from ...errors import OptionError
from ..bench.checkpoint_log import CheckpointLog
from .arms import make_agents
from .episodes import Episode, run_episode
from .tasks import FORM, KINDS, Task, tasks

Advance = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class AgentsPlan:
    """What is played by which model, `served` where."""

    model: str
    arms: tuple[str, ...]
    kinds: tuple[str, ...] = KINDS
    split: str = "test"
    limit: int = 100
    seed: int = 0
    system: str | None = FORM
    recursion_limit: int = 60
    served: str | None = None

    def tasks(self) -> list[Task]:
        """The tasks, the same for all arms."""
        return tasks(self.split, self.seed, self.limit, self.kinds)


def play_all(
    plan: AgentsPlan,
    drawn: Sequence[Task],
    model: BaseChatModel,
    journal: CheckpointLog,
    router: Router | None = None,
    advance: Advance | None = None,
) -> dict[str, list[Episode]]:
    """The episodes of each arm, in the order of the tasks that were drawn."""
    agents = {arm: make_agents(arm, model, router, plan.system) for arm in plan.arms}
    found: dict[str, list[Episode]] = {}
    for arm, agent in agents.items():
        found[arm] = []
        for task in drawn:
            record = journal.piece(f"{arm} {task.id}", partial(_played, task, agent, plan.recursion_limit))
            found[arm].append(Episode(**record))
            if advance is not None:
                advance(arm, 1)
    return found


def _played(task: Task, agent: Callable[[Task], Any], recursion_limit: int) -> dict[str, Any]:
    return run_episode(task, agent(task), recursion_limit).record()


def modes_among(arms: Mapping[str, Sequence[Episode]]) -> Mapping[str, Sequence[Episode]]:
    """The episodes of each mode; raises OptionError where one was not played."""
    if missing := [mode for mode in MODES if mode not in arms]:
        raise OptionError(f"a router is learnt from all modes, and {', '.join(missing)} is not among --arms")
    return {mode: arms[mode] for mode in MODES}


def open_log(plan: AgentsPlan, out: Path | None, about: Mapping[str, Any]) -> CheckpointLog:
    """Where finished episodes are kept until all are."""
    path = None if out is None else out.with_name(f"{out.name}.journal")
    return CheckpointLog(path, {**asdict(plan), **about})
