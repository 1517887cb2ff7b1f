"""Plan-and-Budget (arXiv 2505.16122): a question falls into sub-questions, and each has its share of the budget.

The paper states the caps in the prompt, where they are soft, and leaves the planner's tokens out of the count. Here
they hold: when a share is spent the next sub-question is put, and after the last the thinking is closed; and planning
is paid for like all else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ....errors import OptionError, unknown
from ..base import AskHelper, Close, Inject, Note, PolicyView, Wait, Watching

Schedule = Literal["constant", "linear", "polynomial", "exponential", "cosine"]
SCHEDULES: Mapping[str, Callable[[int, int], float]] = {
    "constant": lambda j, n: 1.0,
    "linear": lambda j, n: n - j,
    "polynomial": lambda j, n: (n - j) ** 2,
    "exponential": lambda j, n: 0.9**j,
    "cosine": lambda j, n: 0.5 * (1 + math.cos(math.pi * j / (n - 1))) + 0.1 if n > 1 else 1.0,
}
"""How much the step numbered j of n gets, beside its difficulty: the paper's decays, for steps that count from 0."""
LEVELS = (200, 250, 350, 450, 600)
"""Tokens for a whole question by its difficulty, 1 to 5."""
_LATE = 24  # tokens within which a step waits for the end of a sentence
_PLANNING = 400  # tokens that a plan may have
_ASK = """Break this question into 2 to 5 sub-questions that lead to its answer, in order. Say how hard the whole is,
from 1 to 5, and share 100 credits among the sub-questions by how hard each is. Answer with JSON only, in this form:
{{"level": 3, "steps": [{{"question": "...", "credits": 60}}, {{"question": "...", "credits": 40}}]}}

Question:
{question}"""


@dataclass(frozen=True, slots=True)
class Plan:
    """level: 1 to 5; steps: sub-questions with what each weighs."""

    level: int
    steps: tuple[tuple[str, float], ...]


def read_plan(text: str) -> Plan | None:
    """The plan in a planner's reply; None where there is none that can be followed."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found: Any = json.loads(text[start : end + 1]) if 0 <= start < end else None
        steps = tuple((str(step["question"]).strip(), float(step["credits"])) for step in found["steps"])
        level = min(max(int(found.get("level", 3)), 1), len(LEVELS))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    good = all(question and 0 <= weight < math.inf for question, weight in steps)
    return Plan(level, steps) if steps and good and sum(weight for _, weight in steps) > 0 else None


def shares(total: int, weights: Sequence[float], schedule: Schedule = "cosine") -> list[int]:
    """Tokens of each step: proportional to its weight and to the schedule, rounded down; the largest gets the rest."""
    worth = [weight * SCHEDULES[schedule](j, len(weights)) for j, weight in enumerate(weights)]
    made = [int(total * value / sum(worth)) for value in worth]
    made[made.index(max(made))] += total - sum(made)
    return made


@dataclass(frozen=True, slots=True)
class PlanAndBudget:
    """Have the helper plan, put its sub-questions one after the other, and give each its share of tokens.

    total: tokens for the whole question; None takes them from the plan's level. schedule: how later steps get less.
    put: how a sub-question is put. Without a plan that can be read the model thinks by itself, and the trace says so.
    """

    name: ClassVar[str] = "plan"
    needs: ClassVar[frozenset[str]] = frozenset({"crop", "helper"})
    total: int | None = None
    schedule: Schedule = "cosine"
    put: str = "Next: {question}"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if "{question}" not in self.put:
            raise OptionError(f"put is {self.put!r}; accepted: a text with {{question}} in it")

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        view = yield Wait(at=1, boundary="token")
        message = _ASK.format(question=view.question)
        view = yield AskHelper(message, _PLANNING, "to plan", take_back=view.tokens)
        if view.helped is None:
            return
        plan = read_plan(view.helped)
        if plan is None:
            yield Note("no plan: the helper's reply is not one")
            return
        room = view.budget.thinking - view.tokens - view.closing_cost
        total = min(room, LEVELS[plan.level - 1] if self.total is None else self.total)
        for (question, _), tokens in zip(
            plan.steps, shares(total, [w for _, w in plan.steps], self.schedule), strict=True
        ):
            end = view.tokens + tokens
            view = yield Inject(self.put.format(question=_plain(question)), f"{tokens} tokens for a sub-question")
            view = yield Wait(at=end, boundary="sentence", deadline=end + _LATE)
        yield Close(f"the {total} tokens of the plan are spent")


def _plain(question: str) -> str:
    """A sub-question on one line, without what could be taken for a marker."""
    return " ".join(re.sub(r"<[^>]*>", "", question).split())
