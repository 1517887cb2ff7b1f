"""The command `tersely bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..controller.errors import OptionError, TerselyError
from ..controller.session import DEFAULT_MAX_NEW_TOKENS, Options, Session
from .arms import Arm, make_arms
from .bench import Advance, Records, compare, row_dicts, run_arm
from .tasks.questions import TINY, Question, TaskError, fingerprint, load
from .verdict import EXIT_CODES


class OutputError(TerselyError, OSError):
    """A result cannot be written."""

    def __str__(self) -> str:
        return str(self.args[0])


def bench(
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = "tersely-tiny-small",
    arms: Annotated[str, typer.Option(help="Arms: the baseline, the one to be judged, then others.")] = "full,balanced",
    tasks: Annotated[str, typer.Option(help="tiny, or JSONL files of {id, problem, answer[, level]}.")] = TINY,
    split: Annotated[str, typer.Option(help="Split of the embedded tasks: fit, calibrate or test.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Most questions of each task.")] = None,
    rollouts: Annotated[int, typer.Option(help="Generations per question and arm.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the questions drawn and of sampling.")] = 0,
    margin: Annotated[float, typer.Option(help="Loss of accuracy that still counts as none, as a share of 1.")] = 0.01,
    effort: Annotated[str, typer.Option(help="Effort of the arms that do not fix it.")] = "normal",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of one generation.")] = DEFAULT_MAX_NEW_TOKENS,
    batch: Annotated[int, typer.Option(help="Rows decoded at a time.")] = 64,
    think_prompt: Annotated[bool, typer.Option(help="Make a model without thinking markers think.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result, with every row, to this JSON file.")] = None,
) -> None:
    """Compare arms on the same questions and seeds.

    Exit code 0: the second arm loses no accuracy beyond the margin and saves tokens; 1: not; 2: too few questions.
    """
    from ..controller.engines.transformers import load_engine

    _check(rollouts, margin, batch, out)
    made = make_arms(arms, Options(effort=effort, max_new_tokens=max_new_tokens))
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    questions = load_all(names, split, limit, seed)
    session = Session(load_engine(model), think_prompt=think_prompt)
    records = run_all(session, made, questions, seed=seed, rollouts=rollouts, batch=batch)
    result = {
        "tasks": names,
        "model": model,
        "splits": {split: {"n": len(questions), "sha256": fingerprint(questions)}},
        "margin": margin,
        **compare(records, margin, seed),
        "seed": seed,
        "rollouts": rollouts,
    }
    if out is not None:
        write(out, {**result, "rows": row_dicts(records)})
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        from rich.console import Console

        from .table import show

        show(result, Console())
    raise typer.Exit(EXIT_CODES[result["verdict"]])


def _check(rollouts: int, margin: float, batch: int, out: Path | None) -> None:
    """Refuse what would only fail after minutes of work."""
    for name, value in (("rollouts", rollouts), ("batch", batch)):
        if value < 1:
            raise OptionError(f"{name} is {value}; accepted: 1 or more")
    if not 0 <= margin < 1:
        raise OptionError(f"margin is {margin}; accepted: a share from 0 up to 1, as 0.01 for one point")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise OutputError(f"{out} cannot be written; accepted: a file in a folder that exists")


def load_all(names: Sequence[str], split: str, limit: int | None, seed: int) -> list[Question]:
    """The questions of all tasks; raises TaskError if there are none or two tasks share an id."""
    if not names:
        raise TaskError(f"no task given; accepted: {TINY!r} or paths of JSONL files")
    questions, seen = [], set()
    for name in names:
        for question in load(name, split, limit, seed):
            if question.id in seen:
                raise TaskError(f"task {name!r}: id {question.id!r} is also in another task; make ids unique")
            seen.add(question.id)
            questions.append(question)
    return questions


def run_all(
    session: Session, arms: Sequence[Arm], questions: Sequence[Question], *, seed: int, rollouts: int, batch: int
) -> list[Records]:
    """Run all arms under a progress bar."""
    with _progress(len(arms) * len(questions) * rollouts) as advance:
        return [
            run_arm(session, arm, questions, seed=seed, rollouts=rollouts, batch=batch, advance=advance) for arm in arms
        ]


@contextmanager
def _progress(total: int) -> Iterator[Advance | None]:
    """A progress bar on stderr, only where someone watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda arm, rows: progress.update(task, advance=rows, description=arm)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all; raises OutputError."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another place with --out") from None
