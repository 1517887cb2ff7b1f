"""How far a benchmark is, and what time it will take still."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .arms import CUTS
from .counterfactual import CURVE, TRIALS
from .run import Advance

_ASKING, _CUTTING = 0.3, 0.1
"""What one generation's trial answers and one cut of it take, beside the generation."""


def work(generations: int, arms: int, baselines: bool) -> float:
    """All the work of a benchmark, in generations; each arm has so many."""
    return generations * (arms + (_ASKING + _CUTTING * (len(CUTS) + CURVE)) * baselines)


@contextmanager
def shown(total: float, arms: list[str]) -> Iterator[Advance]:
    """A progress bar on stderr, only where someone watches."""
    if not sys.stderr.isatty():
        yield lambda what, rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shares = {TRIALS: _ASKING, **dict.fromkeys(arms, 1.0)}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda what, rows: progress.update(task, advance=rows * shares.get(what, _CUTTING), description=what)
