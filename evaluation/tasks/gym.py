"""Tasks of reasoning-gym by name: generated problems in disjoint splits, scored by their own rules.

The package runs in a helper process only: it is slow to import, some of its generators search for long, and some of
its scorers evaluate the answers they are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec

from ...errors import unknown
from .questions import GYM, Drawn, Question, TaskError
from .sandbox import HelperError, SandboxProcess
from .toy_problems import SPLITS

_BLOCK = 50
"""Problems drawn from one seed."""
_PATIENCE = 4
"""Blocks in a row without a new problem after which a generator is taken to have no more."""
_NAMING, _DRAWING = 10.0, 180.0
"""Seconds for the list of names, and for one block of the slowest generators."""


def load(name: str, split: str, limit: int, seed: int) -> list[Question]:
    """The first `limit` problems of a generator's split, fewer if it has no more; the same for the same seed.

    Raises OptionError for an unknown name and TaskError if reasoning-gym is missing or the generator fails.
    """
    if find_spec("reasoning_gym") is None:
        raise TaskError(f"task {GYM + name!r} needs reasoning-gym; install it: pip install 'tersely[gym]'")
    questions: list[Question] = []
    try:
        with SandboxProcess("reasoning_gym") as worker:
            names = worker.ask("names", seconds=_NAMING)
            if name not in names:
                raise unknown("task of reasoning-gym", name, names)
            for text, answer, level, entry in _problems(worker, name, split, seed):
                number = len(questions)
                drawn = Drawn(name, entry)
                questions.append(
                    Question(f"{GYM}{name}-{split}-{seed}-{number}", text, answer, level, name, drawn, GYM + name)
                )
                if len(questions) == limit:
                    break
    except HelperError as error:
        raise TaskError(f"{GYM}{name} cannot be drawn: {error}; choose another task or seed") from None
    if not questions:
        raise TaskError(f"{GYM}{name} has no problem in split {split!r}; choose another split or task")
    return questions


def _problems(worker: SandboxProcess, name: str, split: str, seed: int) -> Iterator[tuple[str, str, int | None, str]]:
    """Different problems of one split: a text belongs to the split its hash says, whatever seed gave it."""
    seen: set[str] = set()
    block = stale = 0
    while stale < _PATIENCE:
        start = int.from_bytes(_hash(f"tersely:{name}:{split}:{seed}:{block}")[:4]) % 2**31
        stale += 1
        for problem in worker.ask("draw", name, start, _BLOCK, seconds=_DRAWING):
            text = problem[0]
            if _split_of(text) == split and text not in seen:
                seen.add(text)
                stale = 0
                yield problem
        block += 1


def _split_of(text: str) -> str:
    return SPLITS[_hash(text)[0] % len(SPLITS)]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
