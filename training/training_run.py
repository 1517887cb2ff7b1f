"""A training run on TRL: trainer arguments from the recipe, checkpoints, and the model that it writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..controller.engines.transformers.engine import TransformersEngine, load_engine
from ..io import atomic_dir
from .callbacks import CollapseAlarm, GradientGuard, RunRecorder, prune_checkpoints
from .config import Alarm, Lora, Optimiser, Recipe
from .memory import make_lora_config
from .preflight import CheckedRecipe, Row, schedule_rows
from .processes import rank0_only, world_size
from .sampling import RolloutSampler

if TYPE_CHECKING:
    from .rewards import Reward
    from .rollouts import GroupRollouts
    from .trainer import AdaptiveTrainer, Credit

MODEL = "model"
ADAPTER = "adapter"
Finish = Callable[[Any, Path], None]
"""Called with the model and the folder being written, right before the model is saved into it."""
R = TypeVar("R", bound=Recipe, covariant=True)


@dataclass(frozen=True)
class TrainingRun(Generic[R]):
    """One run of a checked recipe: its folder, the checkpoint to resume from (None to start), how to log a line."""

    recipe: R
    checked: CheckedRecipe
    folder: Path
    checkpoint: Path | None
    log: Callable[[str], None]

    def make_stage(self, name: str, optimiser: Optimiser) -> TrainingRun[R]:
        """A stage with an optimiser of its own, in a subfolder, resumed if it was interrupted."""
        folder, recipe = self.folder / name, self.recipe.model_copy(update={"optimiser": optimiser})

        def prepare() -> Path | None:
            folder.mkdir(exist_ok=True)
            return prune_checkpoints(folder)

        return replace(self, recipe=recipe, folder=folder, checkpoint=rank0_only(prepare))

    def load_model(self) -> TransformersEngine:
        """Load the model as it is before training."""
        return load_engine(self.recipe.model, self.recipe.optimiser.dtype)

    def make_sampler(self, engine: TransformersEngine | None = None, **options: Any) -> RolloutSampler:
        """A sampler of the recipe's rollouts, by default of the model before training; see `RolloutSampler`."""
        return RolloutSampler(engine or self.load_model(), self.recipe.rollouts, self.checked.markers, **options)

    def build_grpo_trainer(
        self,
        rollouts: GroupRollouts,
        rewards: Sequence[Reward],
        *,
        credit: Credit,
        alarm: Alarm,
        rows: Sequence[Row] | None = None,
        **options: Any,
    ) -> AdaptiveTrainer:
        """Build a GRPO trainer, by default on the recipe's questions; `options` are arguments of `GRPOConfig`."""
        from datasets import Dataset

        from .trainer import AdaptiveTrainer, GRPOConfig

        recipe = self.recipe
        common = self.trainer_arguments(recipe.rollouts.prompts * recipe.rollouts.generations)
        arguments = GRPOConfig(
            **common,
            num_generations=recipe.rollouts.generations,
            steps_per_generation=common["gradient_accumulation_steps"],
            max_completion_length=recipe.rollouts.max_new_tokens,
            temperature=recipe.rollouts.temperature,
            top_p=1.0,
            top_k=0,
            shuffle_dataset=False,
            remove_unused_columns=False,
            **options,
        )
        scheduled = schedule_rows(
            rows or self.checked.rows, recipe.optimiser.steps, recipe.rollouts.prompts, recipe.seed
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            return AdaptiveTrainer(
                model=rollouts.sampler.engine.model,
                reward_funcs=list(rewards),
                args=arguments,
                train_dataset=Dataset.from_list(scheduled),
                processing_class=rollouts.sampler.engine.tokenizer,
                peft_config=make_lora_config(recipe),
                rollout_func=rollouts,
                credit=credit,
                alarm=CollapseAlarm(alarm, self.log),
                callbacks=self.make_callbacks(),
            )

    def trainer_arguments(self, completions: int) -> dict[str, Any]:
        """The arguments that all TRL trainers share, for optimizer steps of so many completions."""
        import torch

        recipe, settings = self.recipe, self.recipe.optimiser
        return {
            "output_dir": str(self.folder),
            "seed": recipe.seed,
            "max_steps": settings.steps,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": settings.warmup,
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.clip_gradients,
            "per_device_train_batch_size": settings.micro_batch,
            "gradient_accumulation_steps": completions // (settings.micro_batch * world_size()),
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

    def make_callbacks(self) -> list[Any]:
        """The callbacks of every trainer."""
        return [GradientGuard(), RunRecorder(self.folder, self.log)]

    def run_trainer(self, trainer: Any, finish: Finish | None = None) -> None:
        """Run a trainer to its end and write the model, see `save_model`."""
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        if trainer.state.global_step < trainer.state.max_steps:
            return
        model, lora = trainer.model, self.recipe.optimiser.lora
        path = rank0_only(lambda: save_model(model, trainer.processing_class, lora, self.folder, finish))
        self.log(f"wrote {path}")


def save_model(model: Any, tokenizer: Any, lora: Lora | None, folder: Path, finish: Finish | None = None) -> Path:
    """Write the model, or an adapter and (if `lora.merge`) the merged model; return the path of the last one."""
    if lora is not None:
        with atomic_dir(folder / ADAPTER) as part:
            model.save_pretrained(part)
        if not lora.merge:
            return folder / ADAPTER
        model = model.merge_and_unload()
    return write_model(model, tokenizer, folder / MODEL, finish)


def write_model(model: Any, tokenizer: Any, out: Path, finish: Finish | None = None) -> Path:
    """Write a model and its tokenizer atomically, replacing what is there; raises WriteError."""
    with atomic_dir(out) as part:
        if finish is not None:
            finish(model, part)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return out
