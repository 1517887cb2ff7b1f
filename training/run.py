"""`tersely train METHOD --config FILE`: read and check the recipe, prepare the folder of the run, train."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..io import write
from .config import CHANGEABLE, Recipe, RecipeError, read_recipe
from .methods import Method, load_method
from .processes import is_rank0, rank0_only, shutdown
from .training_run import ADAPTER, MODEL, TrainingRun, list_good_checkpoints, prune_checkpoints

RECIPE = "recipe.json"
_DTYPE = "optimizer.dtype"
"""The setting of the optimizer on which completions depend that are sampled before training starts."""
_LEFTOVER = re.compile(rf"\.|{re.escape(RECIPE)}\.\d+\.part$")
"""Names in a folder that do not make it a non-empty one: hidden files, and a recipe whose writing was interrupted."""


print_line = partial(print, flush=True)


def train(
    name: str,
    config: Path,
    *,
    changes: Sequence[str] = (),
    dry_run: bool = False,
    resume: bool = False,
    log: Callable[[str], None] = print_line,
) -> None:
    """Train with a method, as configured in a YAML file and changed by `KEY=VALUE` strings.

    A dry run only checks; `resume` continues from the last good checkpoint in the recipe's `out`. Raises RecipeError,
    TaskError, ModelError, MarkerError before training, and DivergedError, CollapseError while training.
    """
    method = load_method(name)
    log = log if is_rank0() else lambda line: None
    recipe = read_recipe(config, method.recipe, name, changes)
    checked = method.validate(recipe)
    for finding in checked.findings:
        log(finding)
    if dry_run:
        if holds_run(recipe.out):
            log(f"out: {recipe.out} already holds a run; --resume continues it")
        return
    checkpoint = rank0_only(lambda: prepare_folder(recipe, method, resume=resume))
    if checkpoint is not None:
        log(f"resuming from {checkpoint}")
    try:
        method.train(TrainingRun(recipe, checked, recipe.out, checkpoint, log))
    except KeyboardInterrupt:
        log("stopped; the same command with --resume continues it")
        raise
    shutdown()


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a training run; raises RecipeError if it holds something else, or cannot be read."""
    try:
        if (folder / RECIPE).is_file():
            return True
        found = folder.iterdir() if folder.exists() else ()
        names = sorted(path.name for path in found if not _LEFTOVER.match(path.name))
    except OSError as error:
        raise _unusable(folder, error) from None
    if names:
        raise RecipeError(
            f"out is {str(folder)!r}, which is not a training run but holds {', '.join(names[:3])}"
            f"{', ...' * (len(names) > 3)}; choose another folder, so that nothing is overwritten",
            code="out_occupied",
        )
    return False


def _unusable(folder: Path, error: Exception) -> RecipeError:
    return RecipeError(
        f"out is {str(folder)!r}, which cannot be used: {error}; choose another folder", code="out_unusable"
    )


def prepare_folder(recipe: Recipe, method: Method[Any], *, resume: bool) -> Path | None:
    """Create the folder of a new run, or find the checkpoint to resume from; raises RecipeError."""
    folder, values = recipe.out, recipe.model_dump(mode="json", exclude=set(CHANGEABLE))
    exists = holds_run(folder)
    if exists and not resume:
        raise RecipeError(
            f"{folder} already holds a run; add --resume to continue it, or choose another out", code="run_exists"
        )
    if resume and not exists:
        raise RecipeError(f"{folder} does not hold a run to resume; remove --resume to start one", code="no_run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = dict(json.loads((folder / RECIPE).read_text("utf-8"))) if exists else values
    except (OSError, TypeError, ValueError) as error:
        raise _unusable(folder, error) from None
    if changed := dict(_compare(before, values)):
        results = (MODEL, ADAPTER, *method.results)
        untrained = not list_good_checkpoints(folder) and not any((folder / name).exists() for name in results)
        refused = [key for key in changed if not (untrained and key.startswith("optimizer.") and key != _DTYPE)]
        if refused:
            also = ", and until training starts the optimizer except its dtype" if untrained else ""
            raise RecipeError(
                f"the run in {folder} was started with a different {', '.join(changed[key] for key in refused)}; only "
                f"{', '.join(CHANGEABLE)}{also} may change; undo the change, or choose another out for a new run",
                code="recipe_changed",
            )
    if changed or not exists:
        write(folder / RECIPE, json.dumps(values, indent=1) + "\n")
    return prune_checkpoints(folder)


def _compare(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys that differ, each with a description of the difference."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _compare(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, Mapping) or isinstance(now, Mapping):
        yield path, path
    elif before != now:
        yield path, f"{path} ({before!r}, now {now!r})"
