"""The registry of training methods.

Those of this folder are listed here, others are found by the entry-point group `tersely.training_methods`. A method is
a module with a `Method` named METHOD; the first line of an entry point's docstring is its help text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...controller.policies import find_entry_points, read_help
from ...errors import CapabilityError, check_known
from ..config import Recipe

if TYPE_CHECKING:
    from ..preflight import CheckedRecipe
    from ..training_run import TrainingRun

R = TypeVar("R", bound=Recipe)

ENTRY_POINTS = "tersely.training_methods"
METHODS = {
    "adaptthink": ("adaptthink:METHOD", "Learn by RL to answer at once where thinking does not help (AdaptThink)."),
    "adar1": ("adar1:METHOD", "Merge a long and a short thinker, then learn by DPO when to think (AdaR1)."),
    "dler": ("length:DLER", "Learn by RL to be right within a hard limit of tokens (DLER)."),
    "hint": ("sft:HINT", "Learn the embeddings of a hint, with the model frozen (ConciseHint-T)."),
    "lcpo": ("length:LCPO_MAX", "Learn by RL to keep to a number of tokens that the prompt states (LCPO-Max)."),
    "ser": ("length:SER", "Learn by RL to be right and brief, relative to the model's own answers (SER-RL)."),
    "sft": ("sft:SFT", "Learn the model's own shortest right completions, or those a controller shortened."),
    "vsrm": (
        "vsrm:METHOD",
        "Learn by RL with a reward for every thinking step, or analyse where thinking is wasted (VSRM).",
    ),
}
"""Name -> (module of this folder and its `Method`, help text)."""


@dataclass(frozen=True, slots=True)
class Method(Generic[R]):
    """A training method."""

    recipe: type[R]  # the class of its recipes
    validate: Callable[[R], CheckedRecipe]  # checks a recipe before any work is done; raises RecipeError
    train: Callable[[TrainingRun[R]], None]  # trains, or resumes
    # names of files in the run's folder that show that training has started, besides models and adapters
    results: tuple[str, ...] = ()


def list_methods() -> dict[str, str]:
    """All methods by name, each with its help text."""
    own = {name: text for name, (_, text) in METHODS.items()}
    plugins = find_entry_points(ENTRY_POINTS)
    return own | {name: read_help(point) for name, point in plugins.items() if name not in own}


def load_method(name: str) -> Method[Any]:
    """Load a method; raises OptionError for an unknown one, CapabilityError if it lacks a dependency."""
    targets = {own: f"{__name__}.{target}" for own, (target, _) in METHODS.items()}
    if name not in targets:
        targets |= {plugin: f"{point.module}:METHOD" for plugin, point in find_entry_points(ENTRY_POINTS).items()}
    check_known("method", name, targets)
    module, _, attribute = targets[name].partition(":")
    try:
        method: Method[Any] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise CapabilityError(f"method {name!r} cannot be imported: {error}; install what is missing") from None
    return method
