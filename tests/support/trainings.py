"""Small training runs of an embedded model, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from tersely.controller.engines.transformers.engine import load_engine
from tersely.training.config import Alarm, Recipe, validate_recipe_values
from tersely.training.methods import load_method
from tersely.training.preflight import CheckedRecipe
from tersely.training.rewards import Correctness
from tersely.training.rollouts import GroupRollouts
from tersely.training.sampling import RolloutSampler
from tersely.training.training_run import TrainingRun

if TYPE_CHECKING:  # it imports TRL, and with it vLLM
    from tersely.training.trainer import AdaptiveTrainer

R = TypeVar("R", bound=Recipe)
SMALL: Mapping[str, Mapping[str, Any]] = {
    "data": {"questions": 4},
    "rollouts": {"prompts": 2, "generations": 4, "max_new_tokens": 90, "batch": 32},
    "optimizer": {"steps": 2, "micro_batch": 4, "learning_rate": 1e-4},
    "saving": {"every": 1},
}


def recipe_values(name: str, folder: Path, **values: Any) -> dict[str, Any]:
    """The small recipe of a method as plain values; the keys of given sections override its own."""
    merged = {
        key: {**SMALL.get(key, {}), **value} if isinstance(value, Mapping) else value
        for key, value in {**SMALL, **values}.items()
    }
    return {"method": name, "out": str(folder), **merged}


def write_recipe(name: str, folder: Path, **sections: Any) -> Path:
    """The small recipe as a file beside its folder."""
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(recipe_values(name, folder, **sections)), "utf-8")
    return config


def make_recipe(name: str, folder: Path, **sections: Mapping[str, Any]) -> Any:
    """The small recipe of a method."""
    return validate_recipe_values(recipe_values(name, folder, **sections), load_method(name).recipe, "the test")


def make_run(recipe: R, sampler: RolloutSampler, rows: Sequence[dict[str, Any]] = ()) -> TrainingRun[R]:
    """A run that has not started."""
    checked = CheckedRecipe(rows, sampler.session.markers, [])
    return TrainingRun(recipe, checked, recipe.out, None, lambda line: None)


def build_trainer(
    recipe: Recipe, rows: list[dict[str, Any]], plan: list[str], rewards: list[Any] | None = None, **options: Any
) -> tuple[AdaptiveTrainer, RolloutSampler]:
    """A trainer that has not started, and its sampler."""
    sampler = RolloutSampler(load_engine(recipe.model), recipe.rollouts, share=0.5)
    trainer = make_run(recipe, sampler, rows).build_grpo_trainer(
        GroupRollouts(sampler, recipe.seed, plan),
        rewards or [Correctness()],
        credit="reward",
        alarm=Alarm(),
        loss_type="grpo",
        scale_rewards="none",
        **options,
    )
    return trainer, sampler


def train(
    name: str, folder: Path, lines: list[str] | None = None, *, resume: bool = False, **sections: Any
) -> list[str]:
    """Run a small recipe as the command does; returns the logged lines."""
    from tersely.training.run import train as run

    logged = [] if lines is None else lines
    run(name, write_recipe(name, folder, **sections), resume=resume, log=logged.append)
    return logged
