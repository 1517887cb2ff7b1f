"""Plan-and-Budget: its schedules, levels and BBAM's shares, worked out by hand; its caps and its planner's examples."""

from __future__ import annotations

import json

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.policies.base import Action, AskHelper, Inject, PolicyView, Wait
from tersely.controller.policies.research.plan import GRADED, LEVELS, SCHEDULES, PlanAndBudget, Schedule, shares
from tersely.controller.text.thoughts import ThinkingState
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter

from ..support.word_tokenizer import WordTokenizer


def test_the_schedules_of_the_paper() -> None:
    found = {name: [round(decay(j, 4), 3) for j in range(4)] for name, decay in SCHEDULES.items()}
    assert found == {
        "constant": [1, 1, 1, 1],
        "linear": [4, 3, 2, 1],
        "polynomial": [16, 9, 4, 1],
        "exponential": [1, 0.9, 0.81, 0.729],
        "cosine": [1.1, 0.85, 0.35, 0.1],
    }
    assert SCHEDULES["cosine"](0, 1) == 1
    assert LEVELS == (200, 250, 350, 450, 600)


def test_shares_are_whole_and_lose_nothing() -> None:
    assert shares(100, [1, 1, 1], "constant") == [34, 33, 33]
    assert shares(100, [50, 50], "linear") == [67, 33]
    assert shares(250, [40, 60], "cosine") == [220, 30]
    assert shares(11, [2, 3, 3, 1], "constant") == [2, 4, 4, 1], "of 2.4, 3.7, 3.7 and 1.2 the largest get one each"
    assert shares(90, [5, 1, 3], "uniform") == [30, 30, 30]
    assert all(sum(shares(total, [3, 5, 2, 7], "exponential")) == total for total in range(60))


def test_bbam_gives_shares_by_the_root_of_uncertainty() -> None:
    """(c a)^(1 / (a + 1)): with a = 1 the square roots 3, 2 and 1 of 9, 4 and 1; with a = 2 cube roots of 2 c."""
    assert shares(60, [9, 4, 1], "bam") == [30, 20, 10]
    assert shares(70, [32, 4, 0.5], "bam", 2.0) == [40, 20, 10], "4, 2 and 1 of 7"


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_no_other_shares_leave_less_uncertainty(exponent: float) -> None:
    weights = [50.0, 30.0, 20.0]

    def left(budget: list[int]) -> float:
        return float(sum(c / b**exponent for c, b in zip(weights, budget, strict=True)))

    best = shares(300, weights, "bam", exponent)
    everything = [[a, b, 300 - a - b] for a in range(40, 200) for b in range(40, 259 - a)]
    assert left(best) == pytest.approx(min(map(left, everything)), rel=1e-4)
    assert left(shares(300, weights, "constant")) > left(best) * 1.001


QUESTION = "What is 6 times 7, plus 8?"
STEPS = [{"question": "The product? Hint: 6 and 7.", "credits": 40}, {"question": "The sum?", "credits": 60}]


def state(schedule: Schedule) -> tuple[str, list[str], list[Action]]:
    """The message to the planner, what is put where caps are stated, and what follows."""
    view = PolicyView(ThinkingState(TokenizerAdapter(WordTokenizer())), Budget("normal"), 0, QUESTION)
    watching = PlanAndBudget(schedule=schedule, caps="stated").watch(view)
    assert isinstance(next(watching), Wait)
    asked = watching.send(None)
    put = watching.send(json.dumps({"level": 2, "steps": STEPS}))
    assert isinstance(asked, AskHelper) and isinstance(put, Inject)
    return asked.message, put.text.splitlines()[1:], list(watching)


@pytest.mark.parametrize(
    ("schedule", "caps", "end"),
    [
        ("cosine", (220, 30), []),
        ("uniform", (125, 125), []),
        ("planned", None, []),
        ("global", None, ["Let's think step by step and use less than 250 tokens."]),
    ],
)
def test_caps_are_words_of_sub_questions_or_tokens_of_all(
    schedule: Schedule, caps: tuple[int, int] | None, end: list[str]
) -> None:
    """Stated once, in the words of the authors' prompts for each of their forms, and not enforced."""
    lines = [step["question"] for step in STEPS]
    if caps:
        ask = "Please only think a little, and directly solve it using up to {} words."
        lines = [f"{line} {ask.format(cap)}" for line, cap in zip(lines, caps, strict=True)]
    _, put, then = state(schedule)
    assert (put, then) == (lines + end, [])


def test_the_planner_grades_by_examples_of_each_level() -> None:
    message, _, _ = state("cosine")
    assert [level for level, _, _ in GRADED] == [1, 2, 3, 4, 5]
    assert all(f"Level {level}: {question} Answer: {answer}" in message for level, question, answer in GRADED)
    assert "2 to 5 sub-questions" in message and "100 credits" in message and message.endswith(QUESTION)
