"""The questions of a benchmark: the embedded family by name, or a user's JSONL of {id, problem, answer[, level]}."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...controller.answers import boxed, normalise
from ...controller.errors import TerselyError, unknown
from .problems import SPLITS, stream

TINY = "tiny"
DEFAULT_LIMIT = 200
_FORM = '{"id": ..., "problem": ..., "answer": ...} with an optional whole number "level"'


class TaskError(TerselyError, ValueError):
    """A task cannot be used: no such file, a line that is not a question, two of one id, or nothing in it."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its gold answer; level and kind are None where the task knows none."""

    id: str
    problem: str
    answer: str
    level: int | None = None
    kind: str | None = None


def load(task: str, split: str, limit: int | None, seed: int) -> list[Question]:
    """The first `limit` questions of a task.

    `tiny` draws fresh problems of the split from the seed (200 if no limit is given). A file is read as it stands:
    whoever made it decides what split it is.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"limit is {limit}; accepted: 1 or more questions")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if task == TINY:
        drawn = islice(stream(split, seed), limit or DEFAULT_LIMIT)
        return [Question(p.id, p.problem, p.answer, p.level, p.kind) for p in drawn]
    path = Path(task)
    if not path.is_file():
        raise TaskError(f"no task {task!r}; accepted: {TINY!r}, or the path of a JSONL file of {_FORM}")
    questions = _read(path)
    return questions if limit is None else questions[:limit]


def _read(path: Path) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None
    seen: dict[str, int] = {}
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        question = _parse(line, f"{path}, line {number}")
        if question.id in seen:
            used = f"was used in line {seen[question.id]}"
            raise TaskError(f"{path}, line {number}: id {question.id!r} {used}; make ids unique")
        seen[question.id] = number
        questions.append(question)
    if not questions:
        raise TaskError(f"{path} holds no questions; accepted: one a line, {_FORM}")
    return questions


def _parse(line: str, where: str) -> Question:
    try:
        item: Any = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where}: not JSON ({error}); accepted: {_FORM}") from None
    if not isinstance(item, dict):
        raise TaskError(f"{where}: got a {type(item).__name__}, not an object; accepted: {_FORM}")
    for key in ("id", "problem", "answer"):
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            got = "is missing" if key not in item else f"is {value!r}"
            raise TaskError(f"{where}: {key!r} {got}; accepted: {_FORM}")
    level = item.get("level")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise TaskError(f"{where}: 'level' is {level!r}; accepted: a whole number or no level")
    return Question(str(item["id"]), str(item["problem"]), str(item["answer"]), level)


def fingerprint(questions: Sequence[Question]) -> str:
    """A hash of the questions and gold answers, so that two runs can be told to have asked the same."""
    text = json.dumps([[q.id, q.problem, q.answer] for q in questions], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_right(answer: str, gold: str) -> bool:
    """Whether an answer equals the gold one: exact match of one spelling of both."""
    return bool(answer) and answer == normalise(boxed(gold) or gold)
