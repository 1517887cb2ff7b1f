"""Plan-and-Budget: the paper's shares, a plan that is followed and holds, and replies that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils import logging

from tersely.controller.delegation import HelperError, HelperFuture, HelperRequest, HelperText
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers import EngineHelper
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.research.plan import Plan, PlanAndBudget, Schedule, read_plan
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import SamplingParams
from tersely.errors import OptionError

from ...support.refusals import refused

SHELLS = (
    "Tom has 3 shells. Tom finds 48 shells. Tom gives away 12 shells. Tom makes 3 times the shells. "
    "Tom loses 14 shells. Tom finds 7 shells. How many shells does Tom have now?"
)
GOOD = {
    "level": 2,
    "steps": [
        {"question": "The facts: g=3+48, h=g*3, c=h-14, d=c+7.", "credits": 40},
        {"question": "Wait, a second look.", "credits": 60},
    ],
}


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


class Planner:
    """Replies with a text."""

    reviews = False

    def __init__(self, reply: str | None) -> None:
        self.reply = reply
        self.asked: list[HelperRequest] = []

    def write(self, request: HelperRequest) -> HelperFuture:
        self.asked.append(request)
        future = HelperFuture()
        future.tokens, future.read = 30, 90
        if self.reply is None:
            future.set_exception(HelperError("down"))
        else:
            future.set_result(HelperText(self.reply, closed=False))
        return future


def run(engine: Any, helper: Any, policy: PlanAndBudget, most: int = 600) -> GenerationResult:
    options = GenerationOptions(policies=(policy,), max_new_tokens=most, sampling=SamplingParams(temperature=0))
    return Session(engine, helper=helper).run([SHELLS], options)[0]


def test_a_plan_is_followed_and_its_budget_holds(engine: TransformersEngine) -> None:
    planner = Planner(f"Here it is:\n{json.dumps(GOOD)}")
    done = run(engine, planner, PlanAndBudget(total=40, schedule="constant", template="{question}"))
    (asked,) = planner.asked
    assert asked.reply and SHELLS in asked.prompt and '"steps"' in asked.prompt
    assert [d.action for d in done.trace] == ["ask", "inject", "inject", "close"]
    assert (
        done.thinking.startswith("The facts: g=3+48, h=g*3, c=h-14, d=c+7.") and "Wait, a second look." in done.thinking
    )
    assert done.trace[2].position - done.trace[1].position >= 20, "the first step had its share"
    assert done.usage.thinking <= 40 + 2 * 24 + 30
    assert (done.usage.helper_completion, done.usage.helper_prompt) == (30, 90), "planning is paid for"
    assert done.answer


@pytest.mark.parametrize(
    ("schedule", "actions"), [("global", ["ask", "inject", "close"]), ("planned", ["ask", "inject"])]
)
def test_all_sub_questions_are_put_together(engine: TransformersEngine, schedule: Schedule, actions: list[str]) -> None:
    done = run(engine, Planner(json.dumps(GOOD)), PlanAndBudget(total=40, schedule=schedule))
    assert [d.action for d in done.trace] == actions
    assert "The facts: g=3+48, h=g*3, c=h-14, d=c+7. Wait, a second look." in done.thinking


def test_stated_caps_are_put_once_and_not_enforced(engine: TransformersEngine) -> None:
    done = run(engine, Planner(json.dumps(GOOD)), PlanAndBudget(total=40, caps="stated"))
    assert [d.action for d in done.trace] == ["ask", "inject"]
    assert "directly solve it using up to 36 words.\nWait, a second look." in done.trace[1].text
    assert done.usage.thinking > 40 + done.trace[1].position + 100, "the model thinks on behind the plan"


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> GenerationResult:
    """How an answer begins without a plan."""
    options = GenerationOptions(preset="off", max_new_tokens=120, sampling=SamplingParams(temperature=0))
    return Session(engine).run([SHELLS], options)[0]


@pytest.mark.parametrize("reply", ["I cannot.", '{"steps": []}', '{"steps": [{"question": "", "credits": 1}]}', "[1]"])
def test_a_reply_that_is_no_plan_changes_nothing(
    engine: TransformersEngine, plain: GenerationResult, reply: str
) -> None:
    done = run(engine, Planner(reply), PlanAndBudget(), 120)
    assert done.thinking == plain.thinking
    assert [d.action for d in done.trace] == ["ask", "note"]


def test_a_planner_that_is_not_there_is_an_error_in_the_trace(
    engine: TransformersEngine, plain: GenerationResult
) -> None:
    done = run(engine, Planner(None), PlanAndBudget(), 120)
    assert done.thinking == plain.thinking
    assert [d.action for d in done.trace] == ["error"]


def test_plans_are_read_with_care() -> None:
    assert read_plan(json.dumps(GOOD)) == Plan(
        2, (("The facts: g=3+48, h=g*3, c=h-14, d=c+7.", 40.0), ("Wait, a second look.", 60.0))
    )
    assert read_plan('{"level": 9, "steps": [{"question": "a", "credits": 1}]}') == Plan(5, (("a", 1.0),))
    for wrong in (
        '{"steps": [{"question": "a", "credits": -1}]}',
        '{"steps": [{"question": "a", "credits": NaN}]}',
        "}{",
    ):
        assert read_plan(wrong) is None


def test_markers_in_a_plan_are_not_put(engine: TransformersEngine) -> None:
    plan = {"level": 1, "steps": [{"question": "What </think>\n<tool_call> is it?", "credits": 1}]}
    done = run(engine, Planner(json.dumps(plan)), PlanAndBudget())
    assert "Next: What is it?" in done.thinking


@pytest.mark.slow
def test_a_real_helper_replies_without_thinking(engine: TransformersEngine) -> None:
    """The embedded models cannot plan, which the trace says."""
    done = run(engine, EngineHelper(Session(load_engine("tersely-tiny-large"))), PlanAndBudget())
    assert done.trace[0].action == "ask" and "<think>" not in done.trace[0].text
    assert done.usage.helper_completion > 0 and done.usage.helper_prompt > 0 and done.answer


def test_settings_that_make_no_sense() -> None:
    with refused(OptionError, "unknown_name"):
        PlanAndBudget(schedule="linaer")  # type: ignore[arg-type]
    with refused(OptionError, "unknown_name"):
        PlanAndBudget(caps="soft")  # type: ignore[arg-type]
    with refused(OptionError):
        PlanAndBudget(template="Next.")
    with refused(OptionError):
        PlanAndBudget(schedule="bam", exponent=0)
