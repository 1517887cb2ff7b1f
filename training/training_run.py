"""A training run on TRL: trainer arguments from the recipe, callbacks, checkpoints, and the model that it writes."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ..controller.engines.transformers.engine import TransformersEngine, load_engine
from ..errors import TerselyError
from ..io import append_line, atomic_dir, write
from .config import Alarm, Lora, Optimizer, Recipe
from .preflight import CheckedRecipe, make_lora_config
from .processes import rank0_only, world_size
from .rollouts import Row, schedule_rows
from .sampling import DivergedError, RolloutSampler

if TYPE_CHECKING:
    from .rewards import Reward
    from .rollouts import GroupRollouts
    from .trainer import AdaptiveTrainer

MODEL, ADAPTER = "model", "adapter"
COMPLETE, CURVE = "complete.json", "curve.jsonl"
_SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "policy/accuracy": "accuracy",
    "policy/tokens": "tokens",
    "policy/no_think": "no-think",
}
Finish = Callable[[Any, Path], None]
"""Called with the model and the folder being written, right before the model is saved into it."""
R = TypeVar("R", bound=Recipe, covariant=True)


class CollapseError(TerselyError, RuntimeError, code="policy_collapsed"):
    """The policy has collapsed: it always thinks, never thinks, or thinks without content."""


@dataclass(frozen=True)
class TrainingRun(Generic[R]):
    """One run of a checked recipe: its folder, the checkpoint to resume from (None to start), how to log a line."""

    recipe: R
    checked: CheckedRecipe
    folder: Path
    checkpoint: Path | None
    log: Callable[[str], None]

    def make_stage(self, name: str, optimizer: Optimizer) -> TrainingRun[R]:
        """A stage with an optimizer of its own, in a subfolder, resumed if it was interrupted."""
        folder, recipe = self.folder / name, self.recipe.model_copy(update={"optimizer": optimizer})

        def prepare() -> Path | None:
            folder.mkdir(exist_ok=True)
            return prune_checkpoints(folder)

        return replace(self, recipe=recipe, folder=folder, checkpoint=rank0_only(prepare))

    def load_model(self) -> TransformersEngine:
        return load_engine(self.recipe.model, self.recipe.optimizer.dtype)

    def make_sampler(self, engine: TransformersEngine | None = None, **options: Any) -> RolloutSampler:
        """A sampler of the recipe's rollouts, by default of the model before training; see `RolloutSampler`."""
        return RolloutSampler(engine or self.load_model(), self.recipe.rollouts, self.checked.markers, **options)

    def build_grpo_trainer(
        self,
        rollouts: GroupRollouts,
        rewards: Sequence[Reward],
        *,
        alarm: Alarm,
        rows: Sequence[Row] | None = None,
        **options: Any,
    ) -> AdaptiveTrainer:
        """Build a GRPO trainer, by default on the recipe's questions.

        `options` are arguments of `GRPOConfig`, and `credit`, see `AdaptiveTrainer`.
        """
        from datasets import Dataset

        from .trainer import AdaptiveTrainer, GRPOConfig

        recipe, engine, credit = self.recipe, rollouts.sampler.engine, options.pop("credit", "group")
        prompts, generations = recipe.rollouts.prompts, recipe.rollouts.generations
        common = self.trainer_arguments(prompts * generations)
        arguments = GRPOConfig(
            **common,
            num_generations=generations,
            steps_per_generation=common["gradient_accumulation_steps"],
            max_completion_length=recipe.rollouts.max_new_tokens,
            temperature=recipe.rollouts.temperature,
            top_p=1.0,
            top_k=0,
            shuffle_dataset=False,
            remove_unused_columns=False,
            **options,
        )
        scheduled = schedule_rows(rows or self.checked.rows, recipe.optimizer.steps, prompts, recipe.seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            return AdaptiveTrainer(
                model=engine.model,
                reward_funcs=list(rewards),
                args=arguments,
                train_dataset=Dataset.from_list(scheduled),
                processing_class=engine.tokenizer,
                peft_config=make_lora_config(recipe.optimizer.lora),
                rollout_func=rollouts,
                credit=credit,
                empty_tokens=alarm.empty_tokens,
                callbacks=[*self.make_callbacks(), CollapseAlarm(alarm, self.log)],
            )

    def train_grpo(self, rollouts: GroupRollouts, rewards: Sequence[Reward], **options: Any) -> None:
        """Build a GRPO trainer, see `build_grpo_trainer`, and run it."""
        self.run_trainer(self.build_grpo_trainer(rollouts, rewards, **options))

    def trainer_arguments(self, completions: int) -> dict[str, Any]:
        """The arguments that all TRL trainers share, for optimizer steps of so many completions."""
        import torch

        recipe, settings, on_gpu = self.recipe, self.recipe.optimizer, torch.cuda.is_available()
        names = {field.name for field in fields(TrainingArguments)}  # older transformers say gradient_checkpointing
        checkpointing = next(one for one in ("activation_checkpointing", "gradient_checkpointing") if one in names)
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
            checkpointing: settings.checkpoint_activations,
            "bf16": settings.autocast,
            "use_cpu": not on_gpu,
            "ddp_find_unused_parameters": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "steps",
            "save_steps": recipe.saving.every,
            "save_total_limit": recipe.saving.keep,
            "report_to": list(recipe.saving.report_to) or "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": on_gpu,
        }

    def make_callbacks(self) -> list[TrainerCallback]:
        return [_GradientGuard(), RunRecorder(self.folder, self.log)]

    def run_trainer(self, trainer: Any, finish: Finish | None = None) -> None:
        """Run a trainer to its end and write the model, see `save_model`."""
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        if trainer.state.global_step < trainer.state.max_steps:
            return
        model, lora = trainer.model, self.recipe.optimizer.lora
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


def prune_checkpoints(folder: Path) -> Path | None:
    """Remove the checkpoints that are not good, such as half-written ones, and return the latest good one."""
    good = list_good_checkpoints(folder)
    for checkpoint in set(folder.glob("checkpoint-[0-9]*")).difference(good):
        shutil.rmtree(checkpoint)
    return good[-1] if good else None


def list_good_checkpoints(folder: Path) -> list[Path]:
    """The good checkpoints of a run, the latest last. One is good once the next step has succeeded."""
    good = (path.parent for path in folder.glob(f"checkpoint-[0-9]*/{COMPLETE}"))
    return sorted(good, key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")))


class _GradientGuard(TrainerCallback):  # type: ignore[misc]
    """Raises DivergedError before non-finite gradients change the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, weight in kwargs["model"].named_parameters():
            if weight.grad is not None and not bool(weight.grad.isfinite().all()):
                raise DivergedError(
                    f"the gradient of {name} in step {state.global_step + 1} is not finite; the last good "
                    "checkpoint is kept, resume from it (--resume) with a lower learning rate"
                )


class CollapseAlarm(TrainerCallback):  # type: ignore[misc]
    """Stops the training, or warns, when the policy collapses; by the log history, so that resumed runs alarm alike."""

    def __init__(self, settings: Alarm, log: Callable[[str], None]) -> None:
        self.settings, self.log = settings, log
        self.raised: str | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reason = self.find_collapse([log for log in state.log_history if "policy/no_think" in log])
        if reason is None or reason == self.raised:
            return
        self.raised = reason
        self.log(f"collapse alarm at step {state.global_step}: {reason}")
        if self.settings.action == "stop":
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`; raises CollapseError."""
        if self.raised is not None and self.settings.action == "stop":
            raise CollapseError(
                f"training was stopped at step {state.global_step}: {self.raised}; its checkpoints are in "
                f"{args.output_dir}; change `alarm` in the recipe to stop later or only to warn"
            )

    def find_collapse(self, logs: Sequence[Mapping[str, Any]]) -> str | None:
        """The reason why these logs, the latest last, show a collapse; None if they do not."""
        s = self.settings
        recent = [log for log in logs if log["step"] > s.grace][-s.window :]
        if len(recent) < s.window:
            return None
        no_think = [float(log["policy/no_think"]) for log in recent]
        empty = [float(log.get("modes/think/empty") or 0.0) for log in recent]
        if max(no_think) <= s.all_think:
            return f"it always thinks: P(no thinking) was at most {max(no_think):.4f} in {s.window} logs"
        if min(no_think) >= s.no_think:
            return f"it never thinks: P(no thinking) was at least {min(no_think):.4f} in {s.window} logs"
        if min(empty) >= s.empty:
            return f"its thinking is empty: at least {min(empty):.0%} of it in each of {s.window} logs"
        return None


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Logs progress, writes all logs to `curve.jsonl` (on resuming up to the checkpoint), marks good checkpoints."""

    def __init__(self, folder: Path, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.curve, self.log, self.clock = folder / CURVE, log, clock
        self._start_time, self._start_step = 0.0, 0
        self._pending: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start_time, self._start_step = self.clock(), state.global_step
        if state.is_world_process_zero:
            write(self.curve, "".join(json.dumps(log) + "\n" for log in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        logs, steps = state.log_history[-1], state.global_step - self._start_step
        append_line(self.curve, json.dumps(logs).encode())
        if not steps or "loss" not in logs:
            return
        seconds = (self.clock() - self._start_time) / steps
        minutes = seconds * (state.max_steps - state.global_step) / 60
        metrics = "  ".join(f"{name} {logs[key]:.4g}" for key, name in _SHOWN.items() if logs.get(key) is not None)
        self.log(
            f"step {state.global_step}/{state.max_steps} ({state.global_step / state.max_steps:.0%})  {metrics}  "
            f"{seconds:.1f} s/step, {minutes:.0f} min left"
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pending = Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pending is not None and state.is_world_process_zero:
            write(self._pending / COMPLETE, json.dumps({"seen_good_at": state.global_step}) + "\n")
        self._pending = None

    on_train_end = on_step_end
