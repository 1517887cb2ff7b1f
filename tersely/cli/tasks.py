"""`tersely tasks`: sample problems of the embedded task family."""

from __future__ import annotations

import json
from itertools import islice
from typing import Annotated

import typer

from ..errors import OptionError, unknown
from .options import Json


def tasks(
    level: Annotated[int | None, typer.Option("--level", help="Only this level; by default all in turn.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind; by default all in turn.")] = None,
    split: Annotated[str, typer.Option("--split", help="Which of the disjoint splits to draw from.")] = "test",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 0,
    count: Annotated[int, typer.Option("--count", min=1, help="How many problems.")] = 8,
    as_json: Json = False,
) -> None:
    """Show sample problems of the embedded tasks with their answers."""
    from ..evaluation.tasks.toy_problems import KINDS, SPLITS, stream
    from ..evaluation.tasks.toy_programs import LEVELS

    if level is not None and level not in LEVELS:
        raise OptionError(f"unknown level {level}; accepted: {', '.join(map(str, LEVELS))}")
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    problems = stream(split, seed, LEVELS if level is None else (level,), KINDS if kind is None else (kind,))
    rows = [
        {"id": p.id, "level": p.level, "kind": p.kind, "problem": p.problem, "answer": p.answer}
        for p in islice(problems, count)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"[{row['id']}] level {row['level']}, {row['kind']}\n{row['problem']}\nanswer: {row['answer']}\n")
