"""Our form of Plan-and-Budget (arXiv 2505.16122): a question is split, and each part gets a share of the budget.

The authors' one call for the answer lists all sub-questions in its prompt, each with its cap in words, where caps are
soft; `caps="stated"` does that at the beginning of the thinking, as policies write no prompts. By default caps are
tokens and enforced: when a share is spent the next sub-question is put, and after the last the thinking is closed.
Planning is one call of the helper in place of their planner and grader, and counted like everything else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ....errors import OptionError, check_known
from ...types import Capability
from ..base import AskHelper, Close, Inject, Note, Policy, PolicyView, Wait, Watching

Schedule = Literal["constant", "linear", "polynomial", "exponential", "cosine", "bam", "uniform", "global", "planned"]
SCHEDULES: Mapping[str, Callable[[int, int], float]] = {
    "constant": lambda j, n: 1.0,
    "linear": lambda j, n: n - j,
    "polynomial": lambda j, n: (n - j) ** 2,
    "exponential": lambda j, n: 0.9**j,
    "cosine": lambda j, n: 0.5 * (1 + math.cos(math.pi * j / (n - 1))) + 0.1 if n > 1 else 1.0,
}
"""Weight of step j of n (from 0), times its difficulty: the paper's decays."""
ABLATIONS = ("uniform", "global", "planned")
"""The paper's ablations: equal shares; the sub-questions together with one budget; the same without a budget."""
LEVELS = (200, 250, 350, 450, 600)  # for a question by its difficulty, 1 to 5: words where stated, else tokens
_GRACE_TOKENS = 24  # within which a step waits for the end of a sentence
_PLAN_TOKENS = 400
GRADED = (
    (1, "A pen costs 3 dollars. What do 4 pens cost?", "12"),
    (2, "What is 15 % of 80, plus half of 30?", "27"),
    (3, "The sum of two numbers is 20 and their product 91. What is the larger one?", "13"),
    (4, "How many ways are there to climb 10 stairs, 1 or 2 at a time?", "89"),
    (5, "For how many integers n from 1 to 100 is n^2 + n + 1 divisible by 7?", "29"),
)
"""Level, question and answer of the examples by which the planner grades; the authors take theirs from MATH."""
_ASK = (
    """Break a question into 2 to 5 sub-questions that lead to its answer, in order, fewer if it is easy; each with a
short hint of what it is for, without its answer. Say how hard the whole is, from 1 to 5, and share 100 credits among
the sub-questions by how hard each is. Grade by these examples:

"""
    + "".join(f"Level {level}: {question} Answer: {answer}\n" for level, question, answer in GRADED)
    + """
Answer with JSON only, in this form:
{"level": 3, "steps": [{"question": "... Hint: ...", "credits": 60}, {"question": "... Hint: ...", "credits": 40}]}

Question:
"""
)
_WORDS = "{question} Please only think a little, and directly solve it using up to {cap} words."
_TOKENS = "Let's think step by step and use less than {cap} tokens."


@dataclass(frozen=True, slots=True)
class Plan:
    """A difficulty level from 1 to 5, and sub-questions with their weights."""

    level: int
    steps: tuple[tuple[str, float], ...]


def read_plan(text: str) -> Plan | None:
    """Parse the plan in a planner's reply; None if there is none that can be followed."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found: Any = json.loads(text[start : end + 1]) if 0 <= start < end else None
        steps = tuple((str(step["question"]).strip(), float(step["credits"])) for step in found["steps"])
        level = min(max(int(found.get("level", 3)), 1), len(LEVELS))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    good = all(question and 0 <= weight < math.inf for question, weight in steps)
    return Plan(level, steps) if steps and good and sum(weight for _, weight in steps) > 0 else None


def shares(total: int, weights: Sequence[float], schedule: Schedule = "cosine", exponent: float = 1.0) -> list[int]:
    """Split tokens over steps by weight and schedule, rounded down; the largest shares get one more each.

    "bam" is the paper's Budget Allocation Model (BBAM in its first version): the uncertainty c / b^a that a step of
    weight c and b tokens leaves, summed over steps, is least at shares of (c a)^(1 / (a + 1)). With one a for all,
    `exponent`, its power cancels.
    """
    if schedule == "bam":
        worth = [weight ** (1 / (exponent + 1)) for weight in weights]
    elif schedule in SCHEDULES:
        worth = [weight * SCHEDULES[schedule](j, len(weights)) for j, weight in enumerate(weights)]
    else:
        worth = [1.0] * len(weights)
    made = [int(total * value / sum(worth)) for value in worth]
    for j in sorted(range(len(worth)), key=lambda j: -worth[j])[: total - sum(made)]:
        made[j] += 1
    return made


@dataclass(frozen=True, slots=True)
class PlanAndBudget(Policy):
    """Have the helper plan, put its sub-questions one after the other, and give each its share of tokens.

    Without a readable plan the model thinks by itself, and the trace says so.
    """

    name: ClassVar[str] = "plan"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_ROLLBACK, Capability.HELPER})
    total: int | None = None  # tokens for the whole question; None uses the plan's level
    schedule: Schedule = "cosine"  # a decay, "bam", or one of the `ABLATIONS`
    exponent: float = 1.0  # of "bam": how fast tokens reduce the uncertainty of a step
    caps: Literal["enforced", "stated"] = "enforced"
    """"stated" puts all sub-questions at once, each with its cap in words ("global": one in tokens), none enforced."""
    template: str = "Next: {question}"  # of a sub-question where caps are enforced

    def __post_init__(self) -> None:
        check_known("schedule", self.schedule, (*SCHEDULES, "bam", *ABLATIONS))
        check_known("caps", self.caps, ("enforced", "stated"))
        if self.exponent <= 0:
            raise OptionError(f"exponent is {self.exponent}; accepted: above 0")
        if "{question}" not in self.template:
            raise OptionError(f"template is {self.template!r}; accepted: a text with {{question}} in it")

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=1, boundary="token")
        reply = yield AskHelper(_ASK + view.question, _PLAN_TOKENS, "to plan", retract=view.tokens)
        if reply is None:
            return
        plan = read_plan(reply)
        if plan is None:
            yield Note("no plan: the helper's reply is not one")
            return
        total = LEVELS[plan.level - 1] if self.total is None else self.total
        if self.caps == "stated":
            yield Inject(self._state(plan, total), f"{len(plan.steps)} sub-questions with caps of {total} in all")
            return
        total = min(total, view.budget.thinking - view.tokens - view.closing_cost)
        parts = self._share(plan, total)
        if self.schedule in ("global", "planned"):
            parts = [(" ".join(question for question, _ in parts), total)]
        for question, tokens in parts:
            end = view.tokens + tokens
            yield Inject(self.template.format(question=question), f"{tokens} tokens for a sub-question")
            if self.schedule == "planned":
                return
            yield Wait(at=end, boundary="sentence", deadline=end + _GRACE_TOKENS)
        yield Close(f"the {total} tokens of the plan are spent")

    def _share(self, plan: Plan, total: int) -> list[tuple[str, int]]:
        """The sub-questions, each with its cap."""
        made = shares(total, [weight for _, weight in plan.steps], self.schedule, self.exponent)
        return [(_plain(question), cap) for (question, _), cap in zip(plan.steps, made, strict=True)]

    def _state(self, plan: Plan, total: int) -> str:
        """The plan as the authors' prompt has it, with the caps of their form of this schedule."""
        whole = self.schedule in ("global", "planned")
        line = "{question}" if whole else _WORDS
        lines = [line.format(question=question, cap=cap) for question, cap in self._share(plan, total)]
        lines += [_TOKENS.format(cap=total)] if self.schedule == "global" else []
        return "\n".join([f"Level: {plan.level} out of 5. These sub-questions may help:", *lines])


PRESET: Mapping[str, Mapping[str, Any]] = {"budget": {}, "plan": {}}


def _plain(question: str) -> str:
    """A sub-question on one line, without anything that looks like a marker."""
    return " ".join(re.sub(r"<[^>]*>", "", question).split())
