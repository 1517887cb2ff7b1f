"""Middleware in real agents of `create_agent`; a script says what a model that calls tools would say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from pydantic import Field

from tersely.controller.integrations.langchain.chat_model import ChatTersely
from tersely.controller.integrations.langchain.decisions import DifficultyDecision, difficulty_decision
from tersely.controller.integrations.langchain.effort_middleware import EffortMiddleware
from tersely.controller.integrations.langchain.effort_steps import classify_step, effort_settings, min_effort
from tersely.errors import OptionError

MODEL = "tersely-tiny-small"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def fail() -> str:
    """Always fails."""
    raise ValueError("no luck")


class Scripted(BaseChatModel):
    """A chat model that says one reply after the other; `heard` keeps what it was asked, and with which settings.

    script: the replies, of which the last is repeated, or a function of the messages.
    """

    script: Any
    heard: list[Any] = Field(default_factory=list)
    model: str = "scripted"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[getattr(t, "name", str(t)) for t in tools], **kwargs)

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        place = len(self.heard)
        self.heard.append((messages, kwargs))
        reply = self.script(messages) if callable(self.script) else self.script[min(place, len(self.script) - 1)]
        if isinstance(reply, Exception):
            raise reply
        return ChatResult(generations=[ChatGeneration(message=reply.model_copy(deep=True))])


def says(text: str, read: int = 10, written: int = 10, model: str = "scripted", **call: Any) -> AIMessage:
    """A reply that reports usage, with a call of `add` where arguments are given."""
    calls = [{"name": call.pop("tool", "add"), "args": call, "id": f"c{id(object())}"}] if call else []
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    return AIMessage(text, tool_calls=calls, usage_metadata=usage, response_metadata={"model_name": model})


def scripted(*script: Any, **options: Any) -> Scripted:
    return Scripted(script=list(script), **options)


QUESTION = {"messages": [HumanMessage("How much is 1 + 2?")]}


def run(agent: Any, mode: str, question: Any = QUESTION, config: Any = None) -> dict[str, Any]:
    result = agent.invoke(question, config) if mode == "sync" else asyncio.run(agent.ainvoke(question, config))
    assert isinstance(result, dict)
    return result


both = pytest.mark.parametrize("mode", ["sync", "async"])


@both
def test_each_step_gets_the_effort_of_its_kind(mode: str):
    model = scripted(says("", a=1, b=2), says("", tool="fail", x=0), says("3"))
    agent = create_agent(model, [add], middleware=[EffortMiddleware()])
    done = run(agent, mode)
    assert [kwargs["reasoning_effort"] for _, kwargs in model.heard] == ["high", "low", "medium"]
    assert [(s["step"], s["effort"]) for s in done["tersely_steps"]] == [
        ("plan", "hard"),
        ("result", "easy"),
        ("error", "normal"),
    ]
    assert done["messages"][-1].text == "3"


@both
def test_a_table_may_name_some_steps_only_and_efforts_may_be_routed(mode: str):
    small, large = scripted(says("3")), scripted(says("", a=1, b=2))
    middleware = EffortMiddleware({"result": "none"}, route={"hard": large})
    done = run(create_agent(small, [add], middleware=[middleware]), mode)
    assert [kwargs["reasoning_effort"] for _, kwargs in large.heard] == ["high"]
    assert [kwargs["reasoning_effort"] for _, kwargs in small.heard] == ["none"]
    assert [s["routed"] for s in done["tersely_steps"]] == [True, False]


@both
def test_a_function_chooses(mode: str):
    def by_length(request: ModelRequest[Any]) -> str:
        return "easy" if len(request.messages) > 1 else "none"

    async def later(request: ModelRequest[Any]) -> str:
        return by_length(request)

    for choose in (by_length, later):
        model = scripted(says("", a=1, b=2), says("3"))
        agent = create_agent(model, [add], middleware=[EffortMiddleware(choose)])
        if mode == "sync" and choose is later:
            with pytest.raises(OptionError, match="is async; run the agent by ainvoke"):
                run(agent, mode)
            continue
        run(agent, mode)
        assert [kwargs["reasoning_effort"] for _, kwargs in model.heard] == ["none", "low"]


def test_the_probe_chooses_for_a_question():
    decision = DifficultyDecision(model=MODEL)
    model = scripted(says("", a=1, b=2), says("3"))
    agent = create_agent(model, [add], middleware=[EffortMiddleware(difficulty_decision(decision, after="none"))])
    question = "Compute 3 + 4."
    done = agent.invoke({"messages": [HumanMessage(question)]})
    assert [s["effort"] for s in done["tersely_steps"]] == [decision.tier(question), "none"]


def test_wrong_tables_are_refused():
    with pytest.raises(OptionError, match="unknown kind of step 'plann'; did you mean 'plan'"):
        EffortMiddleware({"plann": "easy"})
    with pytest.raises(OptionError, match="unknown effort 'lots'"):
        EffortMiddleware({"plan": "lots"})
    with pytest.raises(OptionError, match="unknown effort 'lots'"):
        EffortMiddleware(route={"lots": scripted(says("3"))})


def test_how_models_are_told_an_effort():
    assert effort_settings(ChatTersely(model=MODEL), "easy") == {"effort": "easy"}
    assert effort_settings(scripted(says("")), "easy") == {"reasoning_effort": "low"}
    levels = scripted(says(""), profile={"reasoning_effort_levels": ["minimal", "medium"]})
    assert effort_settings(levels, "easy") == {"reasoning_effort": "minimal"}
    with pytest.raises(OptionError, match="no reasoning effort that means 'hard'; it has minimal, medium"):
        effort_settings(levels, "hard")


def test_kinds_of_steps():
    asked, call = HumanMessage("?"), AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])
    result = ToolMessage("3", tool_call_id="1")
    error = ToolMessage("no", tool_call_id="1", status="error")
    assert classify_step([asked], True) == classify_step([asked, call, result, AIMessage("3"), asked], True) == "plan"
    assert classify_step([asked, call, result], True) == "result"
    assert classify_step([asked, call, error], True) == "error"
    assert classify_step([asked, call, result], False) == "answer"


@pytest.mark.parametrize(
    ("effort", "ceiling", "result"),
    [("hard", None, "hard"), ("hard", "easy", "easy"), ("none", "easy", "none"), ("auto", "normal", "normal")],
)
def test_lower(effort: str, ceiling: str | None, result: str):
    assert min_effort(effort, ceiling) == result
