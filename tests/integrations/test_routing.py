"""`DifficultyDecision`: the difficulty probe for LangChain's model router."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware
from langchain_core.decisions import Choice, Noul
from langchain_core.messages import HumanMessage

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.integrations.langchain.routing import DifficultyDecision
from tersely.controller.probe_registry import ProbeError
from tersely.controller.session import Session
from tersely.errors import OptionError
from tersely.evaluation.tasks.questions import load

from ..support.refusals import refused
from ..support.scripted_agents import ScriptedChatModel, reply
from ..support.text_engine import TextEngine

MODEL = "tersely-tiny-small"
ROUTES = {"fast": ["none", "easy"], "large": ["normal", "hard"]}
EASY = "Compute 3 + 4."
HARD = [question for question in load("tiny", "test", 60, 3) if question.level == 5][2].problem


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine(MODEL)


def ask(decision: DifficultyDecision, state: Any, labels: tuple[str, ...] = ("fast", "large")) -> Any:
    question = Choice(instructions="Which model?", criteria=dict.fromkeys(labels, ""))
    return decision.invoke({"state": state, "questions": {"q": question}})


def test_labels_get_the_probabilities_of_their_tiers(engine: TransformersEngine):
    decision = DifficultyDecision(model=MODEL, engine=engine, routes=ROUTES)
    easy, hard = ask(decision, EASY).choices["q"], ask(decision, HARD).choices["q"]
    for answer in (easy, hard):
        assert sum(answer.probabilities.values()) == pytest.approx(1.0)
        assert answer.choice == max(answer.probabilities, key=lambda label: answer.probabilities[label])
        assert answer.confidence == answer.probabilities[answer.choice]
    assert easy.probabilities["fast"] > hard.probabilities["fast"]
    assert (easy.choice, hard.choice) == ("fast", "large")
    response = ask(decision, EASY)
    assert response.model == MODEL and response.usage["input_tokens"] > 5 and response.usage["output_tokens"] == 0


def test_question_may_be_text_message_messages_or_state(engine: TransformersEngine):
    decision = DifficultyDecision(model=MODEL, engine=Session(engine), routes=ROUTES)
    forms = [EASY, HumanMessage(EASY), [HumanMessage(EASY)], {"messages": [HumanMessage(EASY)]}]
    shares = [ask(decision, form).choices["q"].probabilities["fast"] for form in forms]
    assert shares == pytest.approx([shares[0]] * 4)


def test_labels_are_tiers_without_routes(engine: TransformersEngine):
    decision = DifficultyDecision(model=MODEL, engine=engine)
    answer = ask(decision, EASY, ("none", "low", "medium", "high")).choices["q"]
    assert answer.choice == "none" and answer.probabilities["high"] == 0.0
    with pytest.raises(OptionError) as error:
        ask(decision, EASY)
    assert error.value.code == "incomplete_routes"


def test_questions_other_than_choices_are_refused(engine: TransformersEngine):
    decision = DifficultyDecision(model=MODEL, engine=engine, routes=ROUTES)
    with refused(OptionError):
        decision.invoke({"state": EASY, "questions": {"q": Noul(instructions="Hard?")}})


def test_model_without_a_probe_is_refused():
    decision = DifficultyDecision(model="text", engine=TextEngine(lambda prompt: "x"), routes=ROUTES)
    with refused(ProbeError):
        ask(decision, EASY)


@pytest.mark.filterwarnings("ignore:The middleware `ModelRouterMiddleware` is in beta")
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_langchain_router_uses_the_decision(engine: TransformersEngine, mode: str):
    decision = DifficultyDecision(model=MODEL, engine=engine, routes=ROUTES)
    fast, large = ScriptedChatModel(script=[reply("fast")]), ScriptedChatModel(script=[reply("large")])
    router = ModelRouterMiddleware(
        choices={"fast": ModelChoice(fast, "easy questions"), "large": ModelChoice(large, "hard questions")},
        instructions="Which model?",
        classifier=decision,
    )
    agent = create_agent(fast, [], middleware=[router])
    for question, expected in ((EASY, "fast"), (HARD, "large")):
        asked = {"messages": [HumanMessage(question)]}
        done = agent.invoke(asked) if mode == "sync" else asyncio.run(agent.ainvoke(asked))
        assert done["messages"][-1].text == expected
