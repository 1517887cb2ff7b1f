"""Running a training on TRL: its arguments from a recipe, its checkpoints found again, its result written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..controller.engines.transformers.engine import TransformersEngine, load_engine
from .adapters import make_adapter
from .callbacks import CollapseAlarm, CollapseError, Completed, Curve, FiniteGradients, Progress, last_good
from .config import Alarm, Recipe
from .data import Row
from .processes import count, rank0_only
from .saving import Finish, save_model

if TYPE_CHECKING:
    from .rewards.base import Reward
    from .rollouts import GroupRollouts
    from .sampling import Sampler
    from .trainer import AdaptiveTrainer, Credit


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run of a training: where it goes on from, None from the beginning."""

    folder: Path
    checkpoint: Path | None
    say: Callable[[str], None]

    @classmethod
    def stage(cls, folder: Path, say: Callable[[str], None]) -> TrainingRun:
        """One of several trainings in a folder of its own, which goes on where it was."""

        def begun() -> Path | None:
            folder.mkdir(exist_ok=True)
            return last_good(folder)

        return cls(folder, rank0_only(begun), say)

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

        from .trainer import AdaptiveTrainer
        from .trl_compat import GRPOConfig

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
                peft_config=make_adapter(recipe),
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
        """Train, and write the model; see `saving.save_model`."""
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        if trainer.state.global_step < trainer.state.max_steps:
            return
        made, lora = trainer.model, recipe.optimiser.lora
        wrote = rank0_only(lambda: save_model(made, trainer.processing_class, lora, self.folder, finish))
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
