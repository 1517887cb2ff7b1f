"""The command tree, and the one place where an exception becomes a line and an exit code; imports no model library."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import typer

from .. import __version__
from ..controller.options import flag
from ..errors import OptionError, TerselyError, check_known
from .doctor import doctor
from .lazy_commands import Command, RootGroup, format_examples, train_app
from .options import Json, silence_libraries
from .run import run

OK, USAGE, INTERRUPTED, CLOSED_PIPE = 0, 2, 130, 141


def tasks(
    level: Annotated[int | None, flag("Only this level; by default all in turn.")] = None,
    kind: Annotated[str | None, flag("Only this kind; by default all in turn.")] = None,
    split: Annotated[str, flag("Which of the disjoint splits to draw from.")] = "test",
    seed: Annotated[int, flag("Seed of the draw.", min=0)] = 0,
    limit: Annotated[int, flag("How many problems.", min=1)] = 8,
    as_json: Json = False,
) -> None:
    """Show sample problems of the embedded tasks with their answers."""
    from ..evaluation.tasks.toy_problems import KINDS, SPLITS, stream
    from ..evaluation.tasks.toy_programs import LEVELS

    if level is not None and level not in LEVELS:
        raise OptionError(f"unknown level {level}; accepted: {', '.join(map(str, LEVELS))}")
    check_known("kind", () if kind is None else kind, KINDS)
    check_known("split", split, SPLITS)
    problems = stream(split, seed, LEVELS if level is None else (level,), KINDS if kind is None else (kind,))
    rows = [
        {"id": p.id, "level": p.level, "kind": p.kind, "problem": p.problem, "answer": p.answer}
        for p in islice(problems, limit)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"[{row['id']}] level {row['level']}, {row['kind']}\n{row['problem']}\nanswer: {row['answer']}\n")


app = typer.Typer(
    name="tersely",
    cls=RootGroup,
    help="The answer a reasoning model would have given, with less thinking.",
    epilog=format_examples(""),
    add_completion=False,
    invoke_without_command=True,
)
app.command(cls=Command, epilog=format_examples("run"))(run)
app.command(cls=Command)(doctor)
app.command(cls=Command)(tasks)
app.add_typer(train_app, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tersely {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, flag("Print the version and exit.", "--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character gets a substitute rather than a traceback.
            stream.reconfigure(errors="replace")
    silence_libraries()
    try:
        code = _invoke(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; what is still buffered must not raise again when Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def _invoke(arguments: list[str]) -> int:
    """Run the command tree without click's own handling, which would print boxes and swallow interrupts."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("tersely", arguments) as context:
            command.invoke(context)
        return OK
    except typer.Exit as ended:
        return ended.exit_code
    except TerselyError as error:
        return _complain(str(error))
    except Exception as error:
        # Usage errors: their class is click's or, in newer releases, typer's private copy of it.
        if not hasattr(error, "format_message"):
            raise
        path = getattr(getattr(error, "ctx", None), "command_path", "tersely")
        return _complain(f"{error.format_message()} (see {path} --help)")


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE
