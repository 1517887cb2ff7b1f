"""Training questions as rows, and the order in which a run sees them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from ..evaluation.agents.tasks import KINDS, Task, draw_tasks, get_system_prompt
from ..evaluation.tasks.questions import Question, load
from .config import Data

Row = dict[str, Any]
"""A question. Columns: id, prompt (messages), answer, gym_entry (name and entry of a reasoning-gym task), tier, level
(the kind, for agent tasks). Methods add columns of their own."""

AGENTS = "agents"


def load_tasks(data: Data) -> list[Task] | None:
    """The tasks named by `agents` or `agents:KIND,KIND`; None for questions without tools. Raises OptionError."""
    name, _, kinds = data.task.partition(":")
    if name != AGENTS:
        return None
    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else KINDS
    return draw_tasks(data.split, data.seed, data.questions, chosen)


def load_rows(data: Data, model: str = "") -> list[Row]:
    """One row per question, with efforts assigned in turn; raises TaskError.

    Args:
        model: decides whether agent tasks get a system prompt that explains the answer format.
    """
    agent_tasks = load_tasks(data)
    if agent_tasks is None:
        questions, system = load(data.task, data.split, data.questions, data.seed), None
    else:
        questions, system = [_to_question(task) for task in agent_tasks], get_system_prompt(model)
    head = [] if system is None else [{"role": "system", "content": system}]
    return [_to_row(question, data.efforts[i % len(data.efforts)], head) for i, question in enumerate(questions)]


def _to_question(task: Task) -> Question:
    return Question(task.id, task.question, "; ".join(sorted(task.gold)), kind=task.kind)


def _to_row(question: Question, tier: str, head: list[dict[str, str]]) -> Row:
    entry = question.drawn
    return {
        "id": question.id,
        "prompt": [*head, {"role": "user", "content": question.problem}],
        "answer": question.answer,
        "gym_entry": None if entry is None else [entry.name, entry.entry],
        "tier": tier,
        "level": question.kind if question.level is None else question.level,
    }


def schedule_rows(rows: Sequence[Row], steps: int, size: int, seed: int) -> list[Row]:
    """The rows of all steps, `size` distinct ones per step, in one shuffled pass after another.

    The order is written out in full, so a resumed run continues in the same order.
    """
    rng, order = Random(f"schedule:{seed}"), list(range(len(rows)))
    usable = len(rows) - len(rows) % size
    scheduled: list[Row] = []
    while len(scheduled) < steps * size:
        rng.shuffle(order)
        scheduled += [rows[i] for i in order[:usable]]
    return scheduled[: steps * size]
