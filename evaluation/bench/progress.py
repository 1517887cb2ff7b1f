"""How far a benchmark is, and what time it will take still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .. import progress
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
    """Lend a function that is told which rows are done, for a bar on stderr."""
    shares = {TRIALS: _ASKING, **dict.fromkeys(arms, 1.0)}
    with progress.show_progress(total) as advance:
        yield lambda what, rows: advance(what, rows * shares.get(what, _CUTTING))
