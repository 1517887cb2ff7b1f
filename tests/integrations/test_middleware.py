"""`EffortMiddleware` in agents of `create_agent`, on a scripted chat model."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from tersely.controller.integrations.langchain.budget_middleware import min_effort
from tersely.controller.integrations.langchain.chat_model import ChatTersely, effort_settings
from tersely.controller.integrations.langchain.middleware import EffortMiddleware, classify_step
from tersely.controller.integrations.langchain.routing import DifficultyDecision, difficulty_decision
from tersely.errors import OptionError

from ..support.refusals import refused
from ..support.scripted_agents import add, reply, run_agent, scripted, sync_and_async

MODEL = "tersely-tiny-small"


@sync_and_async
def test_each_step_gets_the_effort_of_its_kind(mode: str):
    model = scripted(reply("", a=1, b=2), reply("", tool="fail", x=0), reply("3"))
    agent = create_agent(model, [add], middleware=[EffortMiddleware()])
    done = run_agent(agent, mode)
    assert [kwargs["reasoning_effort"] for _, kwargs in model.requests] == ["high", "low", "medium"]
    assert [(s["step"], s["effort"]) for s in done["tersely_steps"]] == [
        ("plan", "hard"),
        ("result", "easy"),
        ("error", "normal"),
    ]
    assert done["messages"][-1].text == "3"


@sync_and_async
def test_partial_table_and_routed_effort(mode: str):
    small, large = scripted(reply("3")), scripted(reply("", a=1, b=2))
    middleware = EffortMiddleware({"result": "none"}, route={"hard": large})
    done = run_agent(create_agent(small, [add], middleware=[middleware]), mode)
    assert [kwargs["reasoning_effort"] for _, kwargs in large.requests] == ["high"]
    assert [kwargs["reasoning_effort"] for _, kwargs in small.requests] == ["none"]
    assert [s["routed"] for s in done["tersely_steps"]] == [True, False]


@sync_and_async
def test_function_chooses_the_effort(mode: str):
    def by_length(request: ModelRequest[Any]) -> str:
        return "easy" if len(request.messages) > 1 else "none"

    async def by_length_async(request: ModelRequest[Any]) -> str:
        return by_length(request)

    for choose in (by_length, by_length_async):
        model = scripted(reply("", a=1, b=2), reply("3"))
        agent = create_agent(model, [add], middleware=[EffortMiddleware(choose)])
        if mode == "sync" and choose is by_length_async:
            with pytest.raises(OptionError) as error:
                run_agent(agent, mode)
            assert error.value.code == "async_function"
            continue
        run_agent(agent, mode)
        assert [kwargs["reasoning_effort"] for _, kwargs in model.requests] == ["none", "low"]


def test_difficulty_probe_chooses_the_effort_of_a_question():
    decision = DifficultyDecision(model=MODEL)
    model = scripted(reply("", a=1, b=2), reply("3"))
    agent = create_agent(model, [add], middleware=[EffortMiddleware(difficulty_decision(decision, after="none"))])
    question = "Compute 3 + 4."
    done = agent.invoke({"messages": [HumanMessage(question)]})
    assert [s["effort"] for s in done["tersely_steps"]] == [decision.tier(question), "none"]


def test_wrong_tables_are_refused():
    with pytest.raises(OptionError) as error:
        EffortMiddleware({"plann": "easy"})
    assert error.value.code == "unknown_name"
    with refused(OptionError, "unknown_name"):
        EffortMiddleware({"plan": "lots"})
    with refused(OptionError, "unknown_name"):
        EffortMiddleware(route={"lots": scripted(reply("3"))})


def test_effort_settings():
    assert effort_settings(ChatTersely(model=MODEL), "easy") == {"effort": "easy"}
    assert effort_settings(scripted(reply("")), "easy") == {"reasoning_effort": "low"}
    levels = scripted(reply(""), profile={"reasoning_effort_levels": ["minimal", "medium"]})
    assert effort_settings(levels, "easy") == {"reasoning_effort": "minimal"}
    with pytest.raises(OptionError) as error:
        effort_settings(levels, "hard")
    assert error.value.code == "unsupported_effort"


def test_classify_step():
    question, call = HumanMessage("?"), AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])
    result = ToolMessage("3", tool_call_id="1")
    error = ToolMessage("no", tool_call_id="1", status="error")
    assert (
        classify_step([question], True)
        == classify_step([question, call, result, AIMessage("3"), question], True)
        == "plan"
    )
    assert classify_step([question, call, result], True) == "result"
    assert classify_step([question, call, error], True) == "error"
    assert classify_step([question, call, result], False) == "answer"


@pytest.mark.parametrize(
    ("effort", "ceiling", "result"),
    [("hard", None, "hard"), ("hard", "easy", "easy"), ("none", "easy", "none"), ("auto", "normal", "normal")],
)
def test_min_effort(effort: str, ceiling: str | None, result: str):
    assert min_effort(effort, ceiling) == result
