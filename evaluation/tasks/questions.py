"""Questions of a benchmark: the embedded family `tiny`, reasoning-gym by name, or JSONL files of your own.

reasoning-gym has disjoint splits and its own scorers. It runs in a sandbox process only: it is slow to import, some
generators search for long, and some scorers would evaluate what they get.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from ...controller.text.answers import extract_boxed, normalize_answer
from ...errors import TerselyError, check_known
from ...probes.fingerprint import question_hash
from ...validation import parse_json, read_lines
from .sandbox import SandboxError, SandboxProcess
from .sandbox_main import BATCH
from .toy_problems import KINDS, SPLITS, stream

TINY = "tiny"
GYM = "gym:"
DEFAULT_LIMIT = 200
_FORM = '{"problem" or "question": ..., "answer": ...}, optionally with "id" and a whole number "level"'

_GYM_PATIENCE = 4  # batches in a row without a new problem after which a generator counts as exhausted
_GYM_NAMES_SECONDS, GYM_DRAW_SECONDS = 10.0, 180.0
"""Time limits for the list of names, and for one batch of the slowest generators."""


class TaskError(TerselyError, ValueError, code="invalid_task"):
    """A task cannot be used: no such file, an invalid line, a repeated id, or no questions."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Where a question of reasoning-gym comes from, to draw it again for scoring; raises TaskError for wrong types."""

    name: str
    seed: int
    index: int  # within the batch of the seed

    def __post_init__(self) -> None:
        numbers = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (self.seed, self.index))
        if not (isinstance(self.name, str) and numbers and self.index < BATCH):
            accepted = f"a task's name, a seed, and an index below {BATCH}"
            raise TaskError(
                f"{self.name!r:.50}, {self.seed!r:.50}, {self.index!r:.50} is not a problem; accepted: {accepted}"
            )


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its gold answer; for reasoning-gym (`drawn`) that may be one of many, or empty."""

    id: str
    problem: str
    answer: str
    level: int | None = None
    kind: str | None = None
    drawn: Drawn | None = None
    task: str = TINY


def load(task: str, split: str, limit: int | None, seed: int) -> list[Question]:
    """Load the first `limit` questions of a task, or of its split if it has any (200 by default); raises TaskError."""
    if limit is not None and limit < 1:
        raise TaskError(f"limit is {limit}; accepted: 1 or more questions")
    check_known("split", split, SPLITS)
    if is_tiny(task):
        kinds = task.removeprefix(TINY)[1:].split("+") if task != TINY else KINDS
        problems = islice(stream(split, seed, kinds=kinds), limit or DEFAULT_LIMIT)
        return [Question(p.id, p.problem, p.answer, p.level, p.kind) for p in problems]
    if task.startswith(GYM):
        return _draw_from_gym(task.removeprefix(GYM), split, limit or DEFAULT_LIMIT, seed)
    path = Path(task)
    if not os.path.isfile(path):  # unlike Path.is_file, it accepts null bytes
        named = f"{TINY!r}, '{TINY}:KIND+KIND', '{GYM}NAME' for a task of reasoning-gym"
        accepted = f"{named}, or the path of a JSONL file of {_FORM}"
        raise TaskError(f"no task {task!r}; accepted: {accepted}")
    questions = [replace(question, task=path.stem) for question in _read_jsonl(path)]
    return questions if limit is None else questions[:limit]


def is_tiny(task: str) -> bool:
    """Whether the task is the embedded family, all of it or some of its kinds (`tiny:story+chain`)."""
    return task.partition(":")[0] == TINY


def load_all(tasks: Sequence[str], split: str, limit: int | None, seed: int) -> list[Question]:
    """Load the questions of several tasks, at most `limit` of each; raises TaskError, also for repeated ids."""
    if not tasks:
        raise TaskError(f"no task given; accepted: {TINY!r}, '{GYM}NAME' or paths of JSONL files, separated by commas")
    if len(families := {task for task in tasks if is_tiny(task)}) > 1:
        raise TaskError(
            f"{' and '.join(sorted(families))} are one task; accepted: '{TINY}:KIND+KIND' for several of its kinds"
        )
    questions: dict[str, Question] = {}
    for task in tasks:
        for question in load(task, split, limit, seed):
            if question.id in questions:
                remedy = "make ids unique, or rename a file without ids"
                raise TaskError(f"task {task!r}: id {question.id!r} is also in another task; {remedy}")
            questions[question.id] = question
    return list(questions.values())


def load_pools(tasks: Sequence[str], sizes: Mapping[str, int], seed: int) -> list[list[Question]]:
    """Load disjoint pools of questions, one for each split in `sizes`, e.g. {"fit": 100, "calibrate": 50}.

    Files have no splits: their questions form one shuffled pool. Raises TaskError, also for files with generated tasks.
    """
    generated = {is_tiny(task) or task.startswith(GYM) for task in tasks}
    if len(generated) > 1:
        raise TaskError(f"tasks are {', '.join(tasks)}; accepted: either generated tasks or files", code="mixed_tasks")
    if generated == {True}:
        pools = [load_all(tasks, split, size, seed) for split, size in sizes.items()]
        if len(tasks) == 1:
            return pools
    else:
        pools = [load_all(tasks, next(iter(sizes)), None, seed)]
    for pool in pools:
        Random(seed).shuffle(pool)
    return [pool[:size] for pool, size in zip(pools, sizes.values(), strict=True)] if generated == {True} else pools


def _read_jsonl(path: Path) -> list[Question]:
    seen: dict[str, str] = {}
    questions = []
    for number, (source, line) in enumerate(read_lines(path, TaskError), 1):
        row = parse_json(_Line, line, source, TaskError)
        answer = row.answer.rpartition("####")[2].strip() or row.answer  # GSM8K's answers end with "#### 18"
        question = Question(row.id or f"{path.stem}-{number}", row.problem, answer, row.level)
        if question.id in seen:
            raise TaskError(f"{source}: id {question.id!r} is already used in {seen[question.id]}; make ids unique")
        seen[question.id] = source
        questions.append(question)
    if not questions:
        raise TaskError(f"{path} has no questions; accepted: one per line, {_FORM}")
    return questions


def _to_text(value: object) -> object:
    """A number as text; raises ValueError for one that is not finite, and for blank text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"got {value!r}; accepted: {_FORM}")


Text = Annotated[str, BeforeValidator(_to_text)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Text = ""
    problem: Text = Field(validation_alias=AliasChoices("problem", "question"))
    answer: Text
    level: int | None = None


def _draw_from_gym(name: str, split: str, limit: int, seed: int) -> list[Question]:
    """The first problems of a generator's split, by the seed; raises OptionError for an unknown name, TaskError."""
    if find_spec("reasoning_gym") is None:
        raise TaskError(f"task {GYM + name!r} needs reasoning-gym; install it: pip install 'tersely[gym]'")
    questions: list[Question] = []
    try:
        with SandboxProcess("reasoning_gym") as sandbox:
            names = sandbox.call("names", seconds=_GYM_NAMES_SECONDS)
            check_known("task of reasoning-gym", name, names)
            for text, answer, level, drawn in islice(_stream_gym(sandbox, name, split, seed), limit):
                question_id = f"{GYM}{name}-{split}-{seed}-{len(questions)}"
                questions.append(Question(question_id, text, answer, level, name, drawn, GYM + name))
    except SandboxError as error:
        raise TaskError(f"{GYM}{name} cannot be generated: {error}; choose another task or seed") from None
    if not questions:
        raise TaskError(f"{GYM}{name} has no problem in split {split!r}; choose another split or task")
    return questions


def _stream_gym(
    sandbox: SandboxProcess, name: str, split: str, seed: int
) -> Iterator[tuple[str, str, int | None, Drawn]]:
    """Distinct problems of one split; the hash of a problem's text decides its split, whatever the seed."""
    seen: set[str] = set()
    batch = stale = 0
    while stale < _GYM_PATIENCE:
        start = int.from_bytes(_sha256(f"tersely:{name}:{split}:{seed}:{batch}")[:4]) % 2**31
        stale += 1
        problems = sandbox.call("draw", name, start, seconds=GYM_DRAW_SECONDS)
        for index, (text, answer, level) in enumerate(problems):
            if SPLITS[_sha256(text)[0] % len(SPLITS)] == split and text not in seen:
                seen.add(text)
                stale = 0
                yield text, answer, level, Drawn(name, start, index)
        batch += 1


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def fingerprint(questions: Sequence[Question]) -> str:
    """A hash of questions and gold answers, equal for runs on the same questions."""
    text = json.dumps([[q.id, q.problem, q.answer] for q in questions], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_question(question: Question) -> str:
    """A hash of a question's text, which identifies it in any split or file."""
    return question_hash(question.problem)


def is_right(answer: str, gold: str) -> bool:
    """Whether a normalized answer matches the gold one exactly; see `equality` for mathematical equality."""
    return bool(answer) and answer == normalize_answer(extract_boxed(gold) or gold)
