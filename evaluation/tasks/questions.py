"""The questions of a benchmark: the embedded family or reasoning-gym by name, or a JSONL of {id, problem, answer}."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...controller.text.answers import extract_boxed, normalize_answer
from ...errors import TerselyError, unknown
from ...probes.fingerprint import question_hash
from .toy_problems import SPLITS, stream

TINY = "tiny"
GYM = "gym:"
DEFAULT_LIMIT = 200
_FORM = '{"id": ..., "problem": ..., "answer": ...} with an optional whole number "level"'


class TaskError(TerselyError, ValueError):
    """A task cannot be used: no such file, a line that is not a question, two of one id, or nothing in it."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Where reasoning-gym scores the answers itself: the name of its task, and its entry, packed by `worker.py`."""

    name: str
    entry: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its gold answer; level and kind are None where the task knows none, `task` names that task.

    drawn: for questions of reasoning-gym, whose gold answer may be one of many, or empty.
    """

    id: str
    problem: str
    answer: str
    level: int | None = None
    kind: str | None = None
    drawn: Drawn | None = None
    task: str = TINY


def load(task: str, split: str, limit: int | None, seed: int) -> list[Question]:
    """The first `limit` questions of a task.

    `tiny` and `gym:NAME` draw fresh problems of the split from the seed (200 if no limit is given). A file is read as
    it stands: whoever made it decides what split it is.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"limit is {limit}; accepted: 1 or more questions")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if task == TINY:
        drawn = islice(stream(split, seed), limit or DEFAULT_LIMIT)
        return [Question(p.id, p.problem, p.answer, p.level, p.kind) for p in drawn]
    if task.startswith(GYM):
        from . import gym

        return gym.load(task.removeprefix(GYM), split, limit or DEFAULT_LIMIT, seed)
    path = Path(task)
    if not os.path.isfile(path):  # unlike Path.is_file, it raises for no name at all
        accepted = f"{TINY!r}, '{GYM}NAME' for a task of reasoning-gym, or the path of a JSONL file of {_FORM}"
        raise TaskError(f"no task {task!r}; accepted: {accepted}")
    questions = [replace(question, task=path.stem) for question in _read(path)]
    return questions if limit is None else questions[:limit]


def load_all(tasks: Sequence[str], split: str, limit: int | None, seed: int) -> list[Question]:
    """The questions of several tasks, each at most `limit`; raises TaskError if none is named or two share an id."""
    if not tasks:
        raise TaskError(f"no task given; accepted: {TINY!r}, '{GYM}NAME' or paths of JSONL files, separated by commas")
    questions: dict[str, Question] = {}
    for task in tasks:
        for question in load(task, split, limit, seed):
            if question.id in questions:
                raise TaskError(f"task {task!r}: id {question.id!r} is also in another task; make ids unique")
            questions[question.id] = question
    return list(questions.values())


def _read(path: Path) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: not JSON ({error}); accepted: {_FORM}") from None
    if not isinstance(item, dict):
        raise TaskError(f"{where}: got a {type(item).__name__}, not an object; accepted: {_FORM}")
    for key in ("id", "problem", "answer"):
        if not _says_something(item.get(key)):
            got = f"is {item[key]!r}" if key in item else "is missing"
            raise TaskError(f"{where}: {key!r} {got}; accepted: {_FORM}")
    level = item.get("level")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise TaskError(f"{where}: 'level' is {level!r}; accepted: a whole number or no level")
    return Question(str(item["id"]), str(item["problem"]), str(item["answer"]), level)


def _says_something(value: object) -> bool:
    """Whether a value is a number, or text that is not blank; half a surrogate pair is JSON, but no text."""
    if isinstance(value, str):
        return bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def fingerprint(questions: Sequence[Question]) -> str:
    """A hash of the questions and gold answers, so that two runs can be told to have asked the same."""
    text = json.dumps([[q.id, q.problem, q.answer] for q in questions], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_question(question: Question) -> str:
    """A hash of one question's text, by which it is known again in another split or file."""
    return question_hash(question.problem)


def is_right(answer: str, gold: str) -> bool:
    """Whether an answer equals the gold one by exact match of one spelling of both; see `equality` for more."""
    return bool(answer) and answer == normalize_answer(extract_boxed(gold) or gold)
