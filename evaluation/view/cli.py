"""The command `tersely view`."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ...errors import OptionError
from ...io import WriteError, write
from .files import read
from .page import is_page, page


def view(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file, as `tersely run --trace` makes it.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to write; by default beside the trace, ending in .html.", show_default=False),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not a page of tersely's.")] = False,
) -> None:
    """Show a trace file as one self-contained HTML page."""
    records = read(trace)
    goal = trace.with_suffix(".html") if out is None else out
    _check(goal, trace, force)
    write(goal, page(records, trace.name))
    print(f"{goal}: {len(records)} record{'s' if len(records) > 1 else ''}")
    if open_it and not webbrowser.open(goal.resolve().as_uri()):
        print(f"no browser could be started; open {goal} by hand", file=sys.stderr)


def _check(goal: Path, trace: Path, force: bool) -> None:
    """Refuse a place where a page cannot or should not go."""
    if goal.is_dir() or not goal.absolute().parent.is_dir():
        raise WriteError(f"{goal} cannot be written; accepted: a file in a folder that exists; choose one with --out")
    if not goal.exists():
        return
    if not goal.is_file():
        raise OptionError(f"{goal} is a device or a pipe; accepted: a file, new or a page; choose one with --out")
    if goal.samefile(trace):
        raise OptionError(f"{goal} is the trace itself; accepted: another file; choose one with --out")
    try:
        ours = is_page(goal)
    except OSError as error:
        raise WriteError(f"{goal} cannot be read: {error.strerror}; choose another place with --out") from None
    if not (ours or force):
        raise OptionError(f"{goal} is not a page of tersely's; choose another with --out, or overwrite it with --force")
