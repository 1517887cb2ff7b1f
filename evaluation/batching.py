"""Running many questions through a session in batches, every batch with a seed that does not depend on the arm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from ..controller.session import Options, Session, with_seed
from ..controller.trace import Generation
from .tasks.questions import Question


def batch_seed(seed: int, rollout: int, index: int) -> int:
    """The sampling seed of one batch: the same for every arm, different for every rollout and batch."""
    return int.from_bytes(hashlib.sha256(f"tersely:{seed}:{rollout}:{index}".encode()).digest()[:4], "big") >> 1


def batches(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Indices of the questions in batches of rows that are likely to be equally long: by level, then by length."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].level or 0, len(questions[i].problem), i))
    return [order[at : at + size] for at in range(0, len(order), size)]


def answer_all(
    session: Session,
    questions: Sequence[Question],
    options: Options,
    *,
    seed: int,
    rollout: int = 0,
    size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Answer every question once, in the order given; `advance` is told the rows of each finished batch."""
    done: dict[int, Generation] = {}
    for number, rows in enumerate(batches(questions, size)):
        seeded = with_seed(options, batch_seed(seed, rollout, number))
        made = session.run([questions[i].problem for i in rows], seeded)
        done.update(zip(rows, made, strict=True))
        if advance is not None:
            advance(len(rows))
    return [done[i] for i in range(len(questions))]
