"""Small trainings of the embedded model, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersely.controller.engines.transformers.engine import load_engine
from tersely.training.config import Recipe, checked
from tersely.training.methods import method
from tersely.training.rewards import Correctness
from tersely.training.rollouts import GroupRollouts
from tersely.training.sampling import Sampler
from tersely.training.trainer import AdaptiveTrainer
from tersely.training.training_run import TrainingRun

SMALL: Mapping[str, Mapping[str, Any]] = {
    "data": {"questions": 4},
    "rollouts": {"prompts": 2, "generations": 4, "max_new_tokens": 200, "batch": 32},
    "optimiser": {"steps": 2, "micro_batch": 4, "learning_rate": 1e-4},
    "saving": {"every": 1},
}


def plain(name: str, folder: Path, **values: Any) -> dict[str, Any]:
    """The small recipe of a method as plain values; sections are laid over its own, key by key."""
    merged = {
        key: {**SMALL.get(key, {}), **value} if isinstance(value, Mapping) else value
        for key, value in {**SMALL, **values}.items()
    }
    return {"method": name, "out": str(folder), **merged}


def recipe(name: str, folder: Path, **sections: Mapping[str, Any]) -> Any:
    """The small recipe of a method."""
    return checked(plain(name, folder, **sections), method(name).RECIPE, "the test")


def trainer_of(
    made: Recipe, rows: list[dict[str, Any]], plan: list[str], rewards: list[Any] | None = None, **options: Any
) -> tuple[AdaptiveTrainer, Sampler]:
    """A trainer that has not begun, and its sampler."""
    from tersely.training.config import Alarm

    sampler = Sampler(load_engine(made.model), made.rollouts, share=0.5)
    running = TrainingRun(made.out, None, lambda line: None)
    trainer, _ = running.build(
        made,
        sampler,
        GroupRollouts(sampler, plan, made.seed),
        rewards or [Correctness()],
        rows,
        credit="reward",
        alarm=Alarm(),
        options={"loss_type": "grpo", "scale_rewards": "none", **options},
    )
    return trainer, sampler


def train(
    name: str, folder: Path, lines: list[str] | None = None, *, resume: bool = False, **sections: Any
) -> list[str]:
    """Run a small recipe as the command does; what it says."""
    import yaml

    from tersely.training.run import train as run

    said = [] if lines is None else lines
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(plain(name, folder, **sections)), "utf-8")
    run(name, config, resume=resume, say=said.append)
    return said
