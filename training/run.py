"""`tersely train METHOD --config FILE`: read, check, train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .config import read_recipe
from .methods import method
from .processes import is_first, rank0_only, shutdown
from .run_dir import holds_training, open_folder
from .training_run import TrainingRun


def print_line(line: str) -> None:
    """Print a line at once, or a log file would be minutes behind."""
    print(line, flush=True)


def _silent(line: str) -> None:
    """Of several processes, the first speaks for all."""


def train(
    name: str,
    config: Path,
    *,
    changes: Sequence[str] = (),
    dry_run: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = print_line,
) -> None:
    """Train by a method as a YAML file says.

    changes: `KEY=VALUE` each, in place of what the file says. dry_run: look at data, template, markers, lengths and
    memory, and stop. resume: go on from the last whole checkpoint in the recipe's `out`. Raises RecipeError, TaskError,
    ModelError, MarkerError; DivergedError and CollapseError while it trains.
    """
    chosen = method(name)
    say = say if is_first() else _silent
    recipe = read_recipe(config, chosen.RECIPE, name, changes)
    ground = chosen.validate_recipe(recipe)
    for finding in ground.findings:
        say(finding)
    if dry_run:
        if holds_training(recipe.out):
            say(f"out: {recipe.out} holds a training already, and --resume goes on with it")
        return
    checkpoint = rank0_only(lambda: open_folder(recipe, resume=resume))
    if checkpoint is not None:
        say(f"goes on from {checkpoint}")
    chosen.run(recipe, ground, TrainingRun(recipe.out, checkpoint, say), say)
    shutdown()
