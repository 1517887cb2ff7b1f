"""A progress bar on stderr, only where someone watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(total: float) -> Iterator[Callable[[str, float], None]]:
    """Lend a function that is told what is being done and how much of the total that adds."""
    if not sys.stderr.isatty():
        yield lambda what, amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda what, amount: progress.update(task, advance=amount, description=what)
