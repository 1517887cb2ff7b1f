"""Agents of `create_agent` on the embedded model that calls tools: in this process, and through `tersely serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain_core.messages import HumanMessage

from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.integrations.langchain.chat_model import ChatTersely
from tersely.controller.integrations.langchain.routing import ModeRouter
from tersely.controller.probe_registry import ProbeError
from tersely.controller.serving.rules import ServerSettings
from tersely.evaluation.agents import run
from tersely.evaluation.agents.episodes import Episode, run_episode
from tersely.evaluation.agents.run import make_agents
from tersely.evaluation.agents.tasks import Task, draw_tasks

from ..support.refusals import refused
from ..support.serving import configured, served

MODEL = "tersely-tiny-agent"
TASKS = draw_tasks("test", 7, 3, ("lookup", "calculate", "collect"))


def run_arm(chat: Any, arm: str, tasks: list[Task]) -> list[Episode]:
    agent = make_agents(arm, chat, system=None)
    return [run_episode(task, agent(task)) for task in tasks]


@pytest.fixture(scope="module")
def here() -> list[Episode]:
    return run_arm(ChatTersely(model=MODEL, preset="off", temperature=0), "agentic", TASKS)


def test_an_agent_looks_up_pages_and_answers(here: list[Episode]) -> None:
    assert sum(episode.solved for episode in here) >= 2
    assert all(episode.error is None and episode.answer for episode in here)
    assert sum(episode.calls for episode in here) > 5 and sum(e.failed_calls for e in here) < 4
    assert all(episode.thinking > 0 for episode in here)


def test_a_served_model_takes_the_same_steps(here: list[Episode]) -> None:
    from langchain_openai import ChatOpenAI

    with served(load_engine(MODEL), ServerSettings(configured(defaults={"preset": "off"})), name=MODEL) as server:
        chat = ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key=lambda: "none", temperature=0)
        (theirs,) = run_arm(chat, "agentic", TASKS[:1])
    ours = here[0]
    assert ours.calls and (theirs.answer, theirs.calls, theirs.steps) == (ours.answer, ours.calls, ours.steps)
    assert theirs.written == ours.written


def test_thinking_less_after_results_saves_tokens_and_solves_as_many(here: list[Episode]) -> None:
    always = run_arm(ChatTersely(model=MODEL, preset="off", temperature=0), "always-think", TASKS[:1])
    assert sum(e.written for e in here[:1]) < 0.8 * sum(e.written for e in always)
    assert sum(e.solved for e in here) >= sum(e.solved for e in always)


def test_the_command_trains_a_router_and_uses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MIN_ROUTER_TASKS", 2)
    router, out = tmp_path / "router", tmp_path / "out.json"
    fit = [
        "--kinds",
        "instant,lookup",
        "--split",
        "fit",
        "--limit",
        "2",
        "--arms",
        "instant,reasoning,agentic",
        "--router-out",
        str(router),
    ]
    assert main(["agents", MODEL, *fit]) == 0
    assert "agentic, by kind" in capsys.readouterr().out
    routed = ["--kinds", "lookup", "--limit", "1", "--arms", "always-think,routed", "--router", str(router)]
    kept = tmp_path / "kept.jsonl"
    routed += ["--keep", str(kept), "--keep-ise", "0"]
    assert main(["agents", MODEL, *routed, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text()) and [arm["arm"] for arm in report["arms"]] == [
        "always-think",
        "routed",
    ]
    assert report["arms"][1]["saved"] > 0
    assert [episode["mode"] for episode in report["episodes"]["routed"]] == ["agentic"]
    trajectories = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(trajectories) == report["kept"] == 2
    for one in trajectories:
        assert one["messages"][-1]["role"] == "assistant" and one["messages"][-1]["content"]
        assert one["messages"][1]["reasoning_content"] and one["messages"][1]["tool_calls"]


def test_the_pretrained_router_knows_what_needs_no_tool() -> None:
    router = ModeRouter(MODEL)
    for kind, wanted in (("instant", "instant"), ("reasoning", "reasoning"), ("lookup", "agentic")):
        modes = [router([HumanMessage(task.question)]) for task in draw_tasks("test", 5, 12, (kind,))]
        assert modes.count(wanted) >= 10, (kind, modes)
    with refused(ProbeError):
        ModeRouter("tersely-tiny-small")
