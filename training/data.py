"""Questions as rows of a training, in the order in which it will see them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from ..evaluation.agents.tasks import Task, get_system_prompt
from ..evaluation.tasks.questions import Question, load
from .config import Data
from .environment import load_tasks

Row = dict[str, Any]
"""id, prompt (messages), answer, drawn (of reasoning-gym), tier, level (of an agent's task its kind); methods add
columns of their own."""


def load_rows(data: Data, model: str = "") -> list[Row]:
    """One row for each question, with the tier whose turn it is; raises TaskError.

    model: for whom, which decides what agents are told of the form of an answer.
    """
    found = load_tasks(data)
    questions = load(data.task, data.split, data.questions, data.seed) if found is None else map(_question, found)
    told = None if found is None else get_system_prompt(model)
    system = [] if told is None else [{"role": "system", "content": told}]
    return [_row(question, data.efforts[i % len(data.efforts)], system) for i, question in enumerate(questions)]


def _question(task: Task) -> Question:
    return Question(task.id, task.question, "; ".join(sorted(task.gold)), kind=task.kind)


def _row(question: Question, tier: str, system: list[dict[str, str]]) -> Row:
    drawn = question.drawn
    return {
        "id": question.id,
        "prompt": [*system, {"role": "user", "content": question.problem}],
        "answer": question.answer,
        "drawn": None if drawn is None else [drawn.name, drawn.entry],
        "tier": tier,
        "level": question.kind if question.level is None else question.level,
    }


def schedule(rows: Sequence[Row], steps: int, size: int, seed: int) -> list[Row]:
    """The rows of all steps, `size` different ones for each: one shuffled pass over the questions after the other.

    Written out, so that a resumed training goes on in the same order whatever pass it is in.
    """
    rng, order = Random(f"schedule:{seed}"), list(range(len(rows)))
    whole = len(rows) - len(rows) % size
    made: list[Row] = []
    while len(made) < steps * size:
        rng.shuffle(order)
        made += [rows[i] for i in order[:whole]]
    return made[: steps * size]
