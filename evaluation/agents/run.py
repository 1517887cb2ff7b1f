"""Arms of an agent (how much it thinks, and whether it uses tools), run on the same tasks, and a router from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph

from ...controller.integrations.langchain.chat_model import ChatTersely
from ...controller.integrations.langchain.middleware import (
    MODES,
    BudgetMiddleware,
    EffortMiddleware,
    ModeMiddleware,
    Router,
    SafetyMiddleware,
)
from ...controller.integrations.langchain.routing import LAYER, prompt_hidden_states
from ...controller.policies import make_policies
from ...controller.session import Session
from ...errors import OptionError, check_known
from ...io import CheckpointLog
from ...probes.artifact import Artifact
from ...probes.estimator import ProbeClassifier
from ...probes.io import MODE
from ...probes.tier_selector import label_tiers
from .episodes import Episode, run_episode
from .tasks import FORM, Task
from .tools import langchain_tools

ALWAYS, ROUTED = "always-think", "routed"
ARMS = (ALWAYS, *MODES, ROUTED)
MAX_REPEATS = 3
MIN_ROUTER_TASKS = 20

_ALL_HARD = {"plan": "hard", "result": "hard", "error": "hard", "answer": "hard"}


def parse_arm(arm: str) -> tuple[str, str | None]:
    """Split an arm into its mode and its preset, if it names one; raises OptionError for unknown ones."""
    mode, plus, preset = arm.partition("+")
    check_known("arm", mode, ARMS)
    if plus:
        make_policies(preset)
    return mode, preset if plus else None


def make_agents(
    arm: str, model: BaseChatModel, router: Router | None = None, system: str | None = FORM
) -> Callable[[Task], CompiledStateGraph]:
    """A function that makes an arm's agent for a task, with the tools of the task's world.

    `always-think` has tools and thinks hard at every step; `agentic` thinks hard when planning and little after
    results; `instant` and `reasoning` have no tools; `routed` is one of these three, chosen for each task. `+PRESET`
    gives the arm's ChatTersely a preset. Raises OptionError if arm or preset are unknown, or a router is missing.
    """
    mode, preset = parse_arm(arm)
    if mode == ROUTED and router is None:
        raise OptionError(
            f"arm {ROUTED!r} needs a router; train one with --router-out, and pass its folder with --router",
            code="missing_router",
        )
    route = router if mode == ROUTED and router is not None else mode
    if preset is not None:
        if not isinstance(model, ChatTersely):
            raise OptionError(
                f"arm {arm!r} names a preset, which only a local model can use", code="preset_needs_local"
            )
        model = model.model_copy(update={"preset": preset})

    def make_agent(task: Task) -> CompiledStateGraph:
        middleware = [
            SafetyMiddleware(),
            BudgetMiddleware(repeats=MAX_REPEATS),
            *([EffortMiddleware(_ALL_HARD)] if mode == ALWAYS else [EffortMiddleware(), ModeMiddleware(route)]),
        ]
        return create_agent(model, langchain_tools(task.world), middleware=middleware, system_prompt=system)

    return make_agent


def run_all(
    arms: Sequence[str],
    tasks: Sequence[Task],
    model: BaseChatModel,
    checkpoints: CheckpointLog,
    router: Router | None = None,
    advance: Callable[[str, float], None] = lambda arm, episodes: None,
    *,
    system: str | None = FORM,
    recursion_limit: int = 60,
) -> dict[str, list[Episode]]:
    """The episodes of each arm, in the order of the tasks; `advance` is called after each."""
    agents = {arm: make_agents(arm, model, router, system) for arm in arms}
    episodes: dict[str, list[Episode]] = {}
    for arm, make_agent in agents.items():
        episodes[arm] = []
        for task in tasks:

            def run(task: Task = task, make_agent: Callable[[Task], CompiledStateGraph] = make_agent) -> dict[str, Any]:
                return asdict(run_episode(task, make_agent(task), recursion_limit))

            episodes[arm].append(Episode(**checkpoints.get_or_compute(f"{arm} {task.id}", run)))
            advance(arm, 1)
    return episodes


def select_modes(arms: Mapping[str, Sequence[Episode]]) -> Mapping[str, Sequence[Episode]]:
    """The episodes of each mode; raises OptionError if a mode is not among the arms."""
    if missing := [mode for mode in MODES if mode not in arms]:
        raise OptionError(f"a router is trained on all modes; add {', '.join(missing)} to --arms", code="missing_modes")
    return {mode: arms[mode] for mode in MODES}


def train_router(session: Session, tasks: Sequence[Task], by_mode: Mapping[str, Sequence[Episode]]) -> Artifact:
    """Train a probe for the cheapest mode that solves a task, from episodes of the same tasks in each of `MODES`.

    Tasks that no mode solved are left out. Raises OptionError for too few tasks, or if one mode is the best for all.
    """
    solved = np.array([[float(e.solved) for e in by_mode[mode]] for mode in MODES]).T
    written = np.array([[float(e.written) for e in by_mode[mode]] for mode in MODES]).T
    usable = np.asarray(solved.any(axis=1))
    if usable.sum() < MIN_ROUTER_TASKS:
        raise OptionError(
            f"only {usable.sum()} tasks were solved in some mode; a router needs {MIN_ROUTER_TASKS} or more",
            code="too_few_tasks",
        )
    tasks = [task for task, use in zip(tasks, usable, strict=True) if use]
    labels = label_tiers(solved[usable], written[usable].mean(axis=0), tiers=MODES)
    counts = Counter(labels.tolist())
    if len(counts) < 2:
        raise OptionError(
            f"mode {labels[0]!r} is the best for all {len(tasks)} tasks, so a router has nothing to choose",
            code="single_mode",
        )
    classifier = ProbeClassifier().fit(prompt_hidden_states(session, [task.question for task in tasks]), labels)
    return Artifact(
        MODE,
        classifier.to_network(),
        tuple(map(str, classifier.classes_)),
        LAYER,
        features=(),
        base={"name": session.engine.name, "fingerprint": str(session.engine.fingerprint())},
        provenance={"tasks": len(tasks), "labels": dict(counts)},
        metrics={"held_out_loss": classifier.held_out_loss_},
    )
