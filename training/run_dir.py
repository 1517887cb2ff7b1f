"""The folder of a training: begun, found again, and refused where something else lies there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..io import write
from ..probes.research.shortcut import KIND as SHORTCUT
from .callbacks import good_checkpoints, last_good
from .config import Recipe, RecipeError
from .saving import ADAPTER, MODEL

RECIPE = "recipe.json"
CHANGEABLE = ("out", "saving", "alarm")
"""What may differ when a training goes on."""
_SAMPLED_BY = ("optimiser.dtype",)
"""What of the optimiser completions depend on that are sampled before anything is learnt."""
_NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "mahdpo": {"likelihood": 0.0, "frozen": False},
    "adar1": {"least": 0.0, "likelihood": 0.0},
    "vsrm": {"ineffective": 0.0},
}
"""Options that came later, by their sections, with what does as before."""
_LEFT = re.compile(rf"\.|{re.escape(RECIPE)}\.\d+\.part$")
"""Hidden files, and what a kill left of a recipe: nothing of a training replaces those."""


def holds_training(folder: Path) -> bool:
    """Whether a training stands in a folder; raises RecipeError if something else does, or no folder can be there."""
    try:
        return _holds_training(folder)
    except OSError as error:
        raise RecipeError(f"out is {str(folder)!r}, which cannot be read: {error.strerror}; choose another") from None


def _holds_training(folder: Path) -> bool:
    if not folder.is_dir():
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            raise RecipeError(f"out is {str(folder)!r}, and {nearest} is a file; accepted: a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise RecipeError(f"out is {str(folder)!r}, and {nearest} may not be written to; choose another")
        return False
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise RecipeError(f"out is {str(folder)!r}, which may not be read and written; choose another")
    if (folder / RECIPE).is_file():
        return True
    if found := sorted(place.name for place in folder.iterdir() if not _LEFT.match(place.name)):
        raise RecipeError(
            f"out is {str(folder)!r}, which holds no training but {', '.join(found[:3])}{', ...' * (len(found) > 3)}; "
            "choose another out, for files of the same names would be replaced"
        )
    return False


def open_folder(recipe: Recipe, *, resume: bool) -> Path | None:
    """Make the folder of a training, or find the checkpoint to go on from; raises RecipeError if that is not clear."""
    folder = recipe.out
    described = recipe.model_dump(mode="json", exclude=set(CHANGEABLE))
    if not holds_training(folder):
        if resume:
            raise RecipeError(f"there is no training in {folder} to go on with; leave --resume out to begin one")
        _write(folder, described)
        return None
    if not resume:
        raise RecipeError(f"{folder} holds a training already; add --resume to go on with it, or choose another out")
    if changed := dict(_changed(_read(folder), described)):
        free = not _has_learnt(folder)
        kept = [name for name in changed if not (free and name.startswith("optimiser.") and name not in _SAMPLED_BY)]
        if kept:
            also = ", and optimiser but for its dtype until something is learnt" if free else ""
            raise RecipeError(
                f"the training in {folder} was begun with another {', '.join(changed[name] for name in kept)}; what "
                f"may change is {', '.join(CHANGEABLE)}{also}; set it back, or choose another out for a new one"
            )
        _write(folder, described)
    return last_good(folder)


def _write(folder: Path, described: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"out is {str(folder)!r}, which cannot be made: {error.strerror}; choose another") from None
    write(folder / RECIPE, json.dumps(described, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    """The recipe that was written down, with what did not exist yet then and changes nothing as it is by default."""
    try:
        before = json.loads((folder / RECIPE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{folder / RECIPE} cannot be read: {error}; choose another out") from None
    if not isinstance(before, dict):
        raise RecipeError(f"{folder / RECIPE} holds no recipe; choose another out")
    if isinstance(before.get("sft"), dict):  # where nothing was forced, imitating it changes nothing
        rollouts = before.get("rollouts") or {}
        forced = bool(rollouts.get("policies") or rollouts.get("thinking_budget"))
        before["sft"] = {"imitate": not forced, **before["sft"]}
    return before | {key: {**new, **before[key]} for key, new in _NEUTRAL.items() if isinstance(before.get(key), dict)}


def _changed(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Keys by dots that differ, each with what it was and what it is."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _changed(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif isinstance(before, Mapping) or isinstance(now, Mapping):
        yield place, place
    elif before != now:
        yield place, f"{place} ({before!r}, now {now!r})"


def _has_learnt(folder: Path) -> bool:
    """Whether there is more than completions that were sampled."""
    return bool(good_checkpoints(folder)) or any((folder / name).exists() for name in (MODEL, ADAPTER, SHORTCUT))
