"""The command `tersely view`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ...errors import OptionError
from ...io import WriteError, write
from ..html_page import is_page_by
from .page import GENERATOR, trace_page
from .trace_file import load_records


def view(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file written by `tersely run --trace`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to write; by default next to the trace, ending in .html.", show_default=False),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that tersely did not write.")] = False,
) -> None:
    """Show a trace file as one self-contained HTML page."""
    records = load_records(trace)
    target = trace.with_suffix(".html") if out is None else out
    _check_target(target, trace, force)
    write(target, trace_page(records, trace.name))
    typer.echo(f"{target}: {len(records)} record{'s' if len(records) > 1 else ''}")
    if open_it and not webbrowser.open(target.resolve().as_uri()):
        typer.echo(f"could not start a browser; open {target} yourself", err=True)


def _check_target(target: Path, trace: Path, force: bool) -> None:
    """Refuse a place where a page cannot or should not be written."""
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise WriteError(f"{target} cannot be written; accepted: a file in a folder that exists; choose one with --out")
    if not target.exists():
        return
    if not target.is_file():
        raise OptionError(f"{target} is a device or a pipe; accepted: a file; choose one with --out", code="not_a_file")
    if target.samefile(trace):
        message = f"{target} is the trace itself; accepted: another file; choose one with --out"
        raise OptionError(message, code="overwrites_trace")
    try:
        ours = is_page_by(target, GENERATOR)
    except OSError as error:
        raise WriteError(f"{target} cannot be read: {error.strerror}; choose another place with --out") from None
    if not (ours or force):
        message = f"{target} was not written by tersely; choose another file with --out, or overwrite it with --force"
        raise OptionError(message, code="overwrites_other_file")
