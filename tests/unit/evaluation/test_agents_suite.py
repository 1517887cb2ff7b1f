"""Agents: tasks are solvable with the tools, episodes are judged, arms are compared, and routers are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.integrations.langchain.middleware import ModeMiddleware
from tersely.controller.integrations.langchain.routing import ModeRouter, prompt_hidden_states
from tersely.controller.session import Session
from tersely.errors import OptionError
from tersely.evaluation.agents.episodes import (
    Episode,
    as_text,
    compare_arms,
    judge_episode,
    run_episode,
    select_trajectories,
)
from tersely.evaluation.agents.run import make_agents, run_all, train_router
from tersely.evaluation.agents.tasks import KINDS, NO_TOOL, Task, draw_tasks
from tersely.evaluation.agents.tools import langchain_tools
from tersely.io import CheckpointLog
from tersely.probes.artifact import ArtifactError, save

TASKS = draw_tasks("test", 0, 60)
FEW = TASKS[:15]
ARGUMENT = {"lookup": "name", "calculator": "expression"}
COST = {"high": 100, "medium": 40, "low": 10, "none": 1}


class Solver(BaseChatModel):
    """Solves every task with the task's own calls; without tools, only tasks that need none."""

    asked: dict[str, Task] = {task.question: task for task in TASKS}  # noqa: RUF012 - a field of pydantic's

    @property
    def _llm_type(self) -> str:
        return "solver"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        task = self.asked[next(m.text for m in messages if isinstance(m, HumanMessage))]
        done = sum(isinstance(m, ToolMessage) for m in messages)
        written = COST[kwargs.get("reasoning_effort", "high")]
        usage: Any = {"input_tokens": 50 + 10 * done, "output_tokens": written, "total_tokens": 0}
        if done < len(task.calls) and kwargs.get("tools"):
            tool, argument = task.calls[done]
            call = {"name": tool, "args": {ARGUMENT[tool]: argument}, "id": f"call{done}"}
            message = AIMessage("", tool_calls=[call], usage_metadata=usage)
        else:
            known = done == len(task.calls)
            text = f"So \\boxed{{{'; '.join(sorted(task.gold))}}}." if known else "I do not know."
            message = AIMessage(text, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def test_every_task_is_solved_by_its_own_calls():
    agent = make_agents("agentic", Solver())
    for task in FEW:
        done = run_episode(task, agent(task))
        assert (done.solved, done.calls, done.steps) == (True, len(task.calls), len(task.calls) + 1)
        assert (done.failed_calls, done.duplicates, done.error) == (0, 0.0, None)
        assert (done.isr, done.mode) == (1.0 if task.calls else None, "agentic")


def test_tasks_are_deterministic_and_splits_are_disjoint():
    assert [t.question for t in draw_tasks("test", 0, 60)] == [t.question for t in TASKS]
    seen = {split: {t.question for t in draw_tasks(split, 0, 80)} for split in ("fit", "test")}
    assert not seen["fit"] & seen["test"]
    assert {t.kind for t in TASKS} == set(KINDS)
    assert all(bool(t.calls) == (t.kind not in NO_TOOL) for t in TASKS)


def test_an_answer_must_state_the_gold_answer_and_nothing_else():
    task = next(t for t in TASKS if t.kind == "collect" and len(t.gold) > 2)
    names = sorted(task.gold)
    stranger = next(p.name for p in task.world.list_pages("person") if p.name not in task.gold)
    assert task.solved_by("\\boxed{" + ", ".join(reversed(names)) + "}")
    assert task.solved_by(f"I looked at {stranger} too.\n{' and '.join(names)}")
    assert not task.solved_by("\\boxed{" + ", ".join(names[1:]) + "}")
    assert not task.solved_by("\\boxed{" + ", ".join([*names, stranger]) + "}")
    assert not task.solved_by("")
    number = next(t for t in TASKS if t.kind == "reasoning")
    (gold,) = number.gold
    assert number.solved_by(f"It is \\boxed{{{gold}}}.") and not number.solved_by(f"\\boxed{{{gold}1}}")


def test_a_name_within_a_longer_name_does_not_count():
    world = TASKS[0].world
    team = world.list_pages("team")[0].name
    assert world.find_names(f"It is {team}.") == {team}


def test_failed_tool_calls_have_error_results():
    lookup, search, calculator = langchain_tools(TASKS[0].world)
    firm = TASKS[0].world.list_pages("firm")[0].name
    assert firm in search.invoke({"words": "works"}) and "no page" in search.invoke({"words": "zebra"})
    call: Any = {"type": "tool_call", "id": "1", "args": {"name": firm.lower()}, "name": "lookup"}
    said = lookup.invoke(call)
    assert said.status == "error" and firm in said.content
    for wrong in ("2**9", "1/0", "abs(3)", "9" * 300, "(" * 150, "1e300*1e300", "True", "", "x"):
        call = {"type": "tool_call", "id": "1", "args": {"expression": wrong}, "name": "calculator"}
        assert calculator.invoke(call).status == "error", wrong
    assert calculator.invoke({"expression": "(12 - 4.5) * -2"}) == "-15"


def test_an_episode_is_judged_by_its_messages():
    task = next(t for t in TASKS if t.kind == "lookup" and len(t.calls) == 2)
    first, second = (argument for _, argument in task.calls)
    call = {"name": "lookup", "args": {"name": first}}
    overhead = {"tersely": {"usage": {"overhead": 4}}}
    messages = [
        HumanMessage(task.question),
        AIMessage("", tool_calls=[{**call, "id": "a"}], usage_metadata=_usage(10, 5)),
        ToolMessage("page", tool_call_id="a"),
        AIMessage("", tool_calls=[{**call, "id": "b"}, {**call, "args": {"name": second}, "id": "c"}]),
        ToolMessage("page", tool_call_id="b"),
        ToolMessage("no such page", tool_call_id="c", status="error"),
        AIMessage("\\boxed{nobody}", usage_metadata=_usage(30, 7), response_metadata=overhead),
    ]  # fmt: skip
    done = judge_episode(task, messages, 1.5)
    assert (done.solved, done.steps, done.calls, done.failed_calls) == (False, 3, 3, 1)
    assert done.duplicates == pytest.approx(1 / 3) and done.isr == 0.5 and done.ise == pytest.approx(1 / 3)
    assert done.written > 5 + 7 + 4 and done.read > 40  # the second call's usage is estimated
    cut = judge_episode(task, messages[:-1], 1.5)
    assert cut.answer == "" and not cut.solved


def test_trajectories_that_find_much_with_few_calls_are_kept():
    task = next(t for t in TASKS if t.kind == "collect" and len(t.pages) > 3)
    names = [argument for _, argument in task.calls]
    kept = [judge_episode(task, _read(task, names[:n], waste), 1.0) for n, waste in ((len(names), 0), (1, 0), (2, 40))]
    isr, ise = 1 / len(task.pages), 2 / 42
    assert [(one.isr, one.ise) for one in kept] == [(1.0, 1.0), (isr, 1.0), (2 * isr, ise)]
    cut = replace(kept[0], error="not finished")
    aimless = judge_episode(next(t for t in TASKS if not t.calls), [AIMessage("5")], 1.0)
    (one,) = select_trajectories({"a": [cut, aimless, kept[2]], "b": kept}, "Be brief.", isr, ise)
    assert (one["arm"], one["id"], one["isr"], one["ise"]) == ("b", task.id, 1.0, 1.0), "thresholds are exclusive"
    roles = ["system", "user", *["assistant", "tool"] * len(names), "assistant"]
    assert [message["role"] for message in one["messages"]] == roles
    call = one["messages"][2]
    assert call["reasoning_content"] == "hm" and call["tool_calls"][0]["function"]["arguments"] == {"name": names[0]}
    assert [tool["function"]["name"] for tool in one["tools"]] == ["lookup", "search", "calculator"]
    assert len(select_trajectories({"b": kept}, None, 0.0, 0.0)) == 3
    json.dumps(one)


def _read(task: Task, names: list[str], waste: int) -> list[BaseMessage]:
    """The messages of an agent that reads these pages, searches `waste` times and gives up."""
    messages: list[BaseMessage] = [HumanMessage(task.question)]
    calls = [("lookup", {"name": name}) for name in names] + [("search", {"words": "x"})] * waste
    for number, (tool, arguments) in enumerate(calls):
        call: Any = {"name": tool, "args": arguments, "id": str(number)}
        messages.append(AIMessage("", tool_calls=[call], additional_kwargs={"reasoning_content": "hm"}))
        messages.append(ToolMessage("page", tool_call_id=str(number), name=tool))
    return [*messages, AIMessage("I do not know.")]


def _usage(read: int, written: int) -> Any:
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def test_an_agent_that_does_not_finish_has_not_solved_its_task():
    task = next(t for t in TASKS if len(t.calls) > 4)
    done = run_episode(task, make_agents("always-think", Solver())(task), recursion_limit=8)
    assert not done.solved and done.error is not None and "8" in done.error
    assert done.calls > 0 and done.written > 0


def test_arms_are_compared_on_the_same_tasks(tmp_path: Path):
    arms = ("always-think", "agentic", "instant", "reasoning", "routed")
    episodes = run_all(
        arms, FEW, Solver(), CheckpointLog(tmp_path / "j", {}), lambda messages: _needed(messages[0].text)
    )
    report = compare_arms(episodes)
    always, agentic, instant, reasoning, routed = report["arms"]
    assert always["solved"] == agentic["solved"] == routed["solved"] == 1.0
    alone = sum(task.kind in NO_TOOL for task in FEW) / len(FEW)
    assert instant["solved"] == reasoning["solved"] == pytest.approx(alone)
    assert agentic["written"] < always["written"] and 0 < agentic["saved"] < routed["saved"]
    assert agentic["saved_ci"][0] < agentic["saved"] < agentic["saved_ci"][1] and agentic["delta_solved"] == 0
    assert set(routed["modes"]) == {"instant", "reasoning", "agentic"} and always["modes"] == {}
    assert routed["modes"]["instant"]["written_per_solved"] == 1.0
    assert instant["kinds"]["lookup"]["written_per_solved"] is None
    assert "none solved" in as_text(report) and "routed, by mode" in as_text(report)
    json.dumps(report, allow_nan=False)
    again = run_all(
        arms, FEW, Solver(asked={}), CheckpointLog(tmp_path / "j", {}), lambda messages: ""
    )  # finished episodes are not run again
    assert compare_arms(again) == report


def _needed(question: str) -> str:
    task = Solver().asked[question]
    return "agentic" if task.calls else task.kind


def test_wrong_arms_modes_and_kinds_are_refused():
    task = TASKS[0]
    for call, code in (
        (lambda: make_agents("agentik", Solver()), "unknown_name"),
        (lambda: make_agents("routed", Solver()), "missing_router"),
        (lambda: draw_tasks("test", 0, 5, ["lookups"]), "unknown_name"),
        (lambda: ModeMiddleware("fast"), "unknown_name"),
        (lambda: run_episode(task, make_agents("routed", Solver(), lambda messages: "slow")(task)), "unknown_name"),
    ):
        with pytest.raises(OptionError) as e:
            call()
        assert e.value.code == code


def test_a_gate_can_remove_the_tools():
    task = next(t for t in TASKS if len(t.calls) > 2)
    gate = ModeMiddleware("agentic", gate=lambda request: len(request.messages) < 3)
    from langchain.agents import create_agent

    agent = create_agent(Solver(), langchain_tools(task.world), middleware=[gate])
    done = run_episode(task, agent)
    assert (done.calls, done.answer, done.mode) == (1, "I do not know.", "agentic")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(load_engine("tersely-tiny-small"))


def _run_perfectly(tasks: list[Task], mode: str) -> list[Episode]:
    """Episodes of a model that solves in each mode exactly what the mode is for."""
    able = {"instant": ("instant",), "reasoning": NO_TOOL, "agentic": KINDS}[mode]
    cost = {"instant": 10, "reasoning": 100, "agentic": 300}[mode]
    return [
        judge_episode(task, [HumanMessage(task.question), AIMessage(
            "\\boxed{" + "; ".join(task.gold) + "}" if task.kind in able else "?", usage_metadata=_usage(9, cost)
        )], 0.0, mode)
        for task in tasks
    ]  # fmt: skip


@pytest.mark.slow
def test_a_router_is_trained_from_episodes_and_saved(session: Session, tmp_path: Path):
    fit = draw_tasks("fit", 0, 250)
    router_probe = train_router(
        session, fit, {mode: _run_perfectly(fit, mode) for mode in ("instant", "reasoning", "agentic")}
    )
    save(router_probe, tmp_path / "router")
    router = ModeRouter(session, str(tmp_path / "router"))
    chosen = [router([HumanMessage(task.question)]) for task in TASKS]
    wanted = [task.kind if task.kind in NO_TOOL else "agentic" for task in TASKS]
    assert sum(c == w for c, w in zip(chosen, wanted, strict=True)) / len(TASKS) > 0.85
    with pytest.raises(ArtifactError):
        ModeRouter("tersely-tiny-large", str(tmp_path / "router"))
    with pytest.raises(OptionError) as e:
        router([AIMessage("hello")])
    assert e.value.code == "no_question"


def test_hidden_states_do_not_depend_on_the_batch(session: Session):
    questions = [task.question for task in TASKS[:3]]
    together, alone = prompt_hidden_states(session, questions), prompt_hidden_states(session, questions[1:2])
    assert together.shape[0] == 3 and together[1] == pytest.approx(alone[0], abs=1e-4)


def test_a_router_needs_enough_tasks_and_several_modes(session: Session):
    fit = [task for task in draw_tasks("fit", 0, 200) if task.kind == "instant"]
    played = {mode: _run_perfectly(fit, mode) for mode in ("instant", "reasoning", "agentic")}
    with pytest.raises(OptionError) as e:
        train_router(session, fit, played)
    assert e.value.code == "single_mode"
    unsolved = {mode: [replace(e, solved=e.solved and n < 7) for n, e in enumerate(es)] for mode, es in played.items()}
    with pytest.raises(OptionError) as e:
        train_router(session, fit, unsolved)
    assert e.value.code == "too_few_tasks"
