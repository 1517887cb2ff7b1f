"""Running a training on TRL: its arguments from a recipe, its checkpoints found again, its result written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..controller.engines.transformers import TransformersEngine, load_engine
from ..errors import did_you_mean
from ..writing import write
from .callbacks import CollapseAlarm, CollapseError, Completed, Curve, FiniteGradients, Progress, last_good
from .config import Alarm, Recipe, RecipeError
from .data import Row
from .processes import count, of_first
from .saving import Finish, save

if TYPE_CHECKING:
    from .rewards.base import Reward
    from .rollouts import GroupRollouts
    from .sampling import Sampler
    from .trainer import AdaptiveTrainer, Credit

RECIPE = "recipe.json"
_NEUTRAL = {
    "mahdpo": {"likelihood": 0.0, "frozen": False},
    "adar1": {"least": 0.0, "likelihood": 0.0},
    "vsrm": {"ineffective": 0.0},
}
"""Options that came later, by their sections, with what does as before."""
CHANGEABLE = ("out", "saving", "alarm")
"""What may differ when a training goes on."""


@dataclass(frozen=True, slots=True)
class Running:
    """One run of a training: where it goes on from, None from the beginning."""

    folder: Path
    checkpoint: Path | None
    say: Callable[[str], None]

    @classmethod
    def stage(cls, folder: Path, say: Callable[[str], None]) -> Running:
        """One of several trainings in a folder of its own, which goes on where it was."""

        def begun() -> Path | None:
            folder.mkdir(exist_ok=True)
            return last_good(folder)

        return cls(folder, of_first(begun), say)

    def load(self, recipe: Recipe) -> TransformersEngine:
        """The model before training."""
        return load_engine(recipe.model, recipe.optimiser.dtype)

    def reinforce(
        self,
        recipe: Recipe,
        sampler: Sampler,
        rollouts: GroupRollouts,
        rewards: Sequence[Reward],
        rows: Sequence[Row],
        *,
        credit: Credit,
        alarm: Alarm,
        options: Mapping[str, Any],
    ) -> None:
        """Train by reinforcement and write the model; raises CollapseError, DivergedError."""
        trainer, watch = self.build(
            recipe, sampler, rollouts, rewards, rows, credit=credit, alarm=alarm, options=options
        )
        self.train(trainer, recipe)
        if watch.raised is not None and alarm.action == "stop":
            raise CollapseError(
                f"the training was stopped at step {trainer.state.global_step}: {watch.raised}; its checkpoints are in "
                f"{self.folder}; see alarm in the recipe for when it goes off"
            )

    def build(
        self,
        recipe: Recipe,
        sampler: Sampler,
        rollouts: GroupRollouts,
        rewards: Sequence[Reward],
        rows: Sequence[Row],
        *,
        credit: Credit,
        alarm: Alarm,
        options: Mapping[str, Any],
    ) -> tuple[AdaptiveTrainer, CollapseAlarm]:
        """The trainer, and its alarm."""
        from datasets import Dataset

        from .libraries import GRPOConfig
        from .trainer import AdaptiveTrainer

        steps = accumulated(recipe, recipe.rollouts.prompts * recipe.rollouts.generations)
        arguments = GRPOConfig(
            **common_arguments(recipe, self.folder, steps),
            num_generations=recipe.rollouts.generations,
            steps_per_generation=steps,
            max_completion_length=recipe.rollouts.max_new_tokens,
            temperature=recipe.rollouts.temperature,
            top_p=1.0,
            top_k=0,
            shuffle_dataset=False,
            remove_unused_columns=False,
            **options,
        )
        watch = CollapseAlarm(alarm, self.say)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            trainer = AdaptiveTrainer(
                model=sampler.engine.model,
                reward_funcs=list(rewards),
                args=arguments,
                train_dataset=Dataset.from_list(list(rows)),
                processing_class=sampler.engine.tokenizer,
                peft_config=adapter(recipe),
                rollout_func=rollouts,
                credit=credit,
                empty_tokens=alarm.empty_tokens,
                callbacks=[watch, *self.callbacks()],
            )
        return trainer, watch

    def callbacks(self) -> list[Any]:
        """What watches every training."""
        return [FiniteGradients(), Progress(self.say), Curve(self.folder), Completed()]

    def train(self, trainer: Any, recipe: Recipe, finish: Finish | None = None) -> None:
        """Train, and write the model; see `saving.save`."""
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        if trainer.state.global_step < trainer.state.max_steps:
            return
        made, lora = trainer.model, recipe.optimiser.lora
        wrote = of_first(lambda: save(made, trainer.processing_class, lora, self.folder, finish))
        self.say(f"wrote {wrote}")


def accumulated(recipe: Recipe, completions: int) -> int:
    """How many times a process computes gradients before all take a step, which learns of so many completions."""
    return completions // (recipe.optimiser.micro_batch * count())


def common_arguments(recipe: Recipe, folder: Path, accumulate: int) -> dict[str, Any]:
    """Arguments that all trainers of TRL share."""
    import torch

    settings = recipe.optimiser
    return {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip_gradients,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_checkpointing": settings.checkpoint_activations,
        "bf16": settings.autocast,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": recipe.saving.every,
        "save_total_limit": recipe.saving.keep,
        "report_to": list(recipe.saving.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def adapter(recipe: Recipe) -> Any:
    """The adapter's configuration, None if all weights are trained."""
    lora = recipe.optimiser.lora
    if lora is None:
        return None
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def open_folder(recipe: Recipe, *, resume: bool) -> Path | None:
    """Make the folder of a training, or find the checkpoint to go on from; raises RecipeError if that is not clear."""
    folder = recipe.out
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"out is {str(folder)!r}, a file; accepted: a folder")
    described = recipe.model_dump(mode="json", exclude=set(CHANGEABLE))
    written = folder / RECIPE
    if not written.exists():
        if resume:
            raise RecipeError(f"there is no training in {folder} to go on with; leave --resume out to begin one")
        folder.mkdir(parents=True, exist_ok=True)
        write(written, json.dumps(described, indent=1) + "\n")
        return None
    if not resume:
        raise RecipeError(f"{folder} holds a training already; add --resume to go on with it, or choose another out")
    before = _completed(json.loads(written.read_text("utf-8")))
    if changed := sorted(key for key in {*before, *described} if before.get(key) != described.get(key)):
        raise RecipeError(
            f"the training in {folder} was begun with another {' and '.join(changed)}; what may change is "
            f"{', '.join(CHANGEABLE)}; choose another out for a new one"
        )
    return last_good(folder)


def _completed(before: dict[str, Any]) -> dict[str, Any]:
    """A recipe that was written down, with what did not exist yet then and changes nothing as it is by default."""
    return before | {key: {**new, **before[key]} for key, new in _NEUTRAL.items() if isinstance(before.get(key), dict)}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that transformers does not know; raises RecipeError."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise RecipeError(f"unknown tracker {name!r}; {did_you_mean(name, sorted(INTEGRATION_TO_CALLBACK))}")
