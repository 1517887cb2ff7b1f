"""Training on sampled completions with TRL's SFT and DPO trainers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

from torch import tensor

from ..controller.engines.transformers.engine import TransformersEngine
from .config import Recipe
from .memory import make_lora_config
from .traces import PreferencePair, SampledTrace
from .trainer import DataCollatorForPreference, DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, WithoutTelemetry
from .training_run import Finish, TrainingRun

LOSS_MASK = "loss_mask"  # column of preference pairs: the masks of the chosen and the rejected completion


class TokenSFTTrainer(WithoutTelemetry, SFTTrainer):  # type: ignore[misc]
    """SFT on token ids."""


class TokenCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Masks the forced tokens of pairs from the loss."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """See TRL."""
        batch: dict[str, Any] = super().torch_call(examples)
        for half in (0, 1):  # all chosen, then all rejected completions
            for row, example in enumerate(examples, half * len(examples)):
                mask, start = example[LOSS_MASK][half], len(example["prompt_ids"])
                batch["completion_mask"][row, start : start + len(mask)] = tensor(mask)
        return batch


class TokenDPOTrainer(WithoutTelemetry, DPOTrainer):  # type: ignore[misc]
    """DPO on token ids, since retokenizing could give others, for words in unusual pieces or where a prompt ends."""

    collator: ClassVar[type[TokenCollator]] = TokenCollator
    extra_columns: ClassVar[tuple[str, ...]] = (LOSS_MASK,)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in self.extra_columns if name not in self._signature_columns]


def train_sft(
    run: TrainingRun[Recipe], engine: TransformersEngine, traces: Sequence[SampledTrace], finish: Finish | None = None
) -> None:
    """Learn to write these completions, except for masked tokens, and write the model."""
    from datasets import Dataset

    rows = [
        {
            "input_ids": [*trace.prompt_ids, *trace.ids],
            "labels": [
                *[-100] * len(trace.prompt_ids),
                *(token if keep else -100 for token, keep in zip(trace.ids, trace.loss_mask, strict=True)),
            ],
        }
        for trace in traces
    ]
    trainer = TokenSFTTrainer(
        model=engine.model,
        args=SFTConfig(**_offline_arguments(run), max_length=None, packing=False),
        train_dataset=Dataset.from_list(schedule_examples(rows, run.recipe)),
        processing_class=engine.tokenizer,
        peft_config=make_lora_config(run.recipe),
        callbacks=run.make_callbacks(),
    )
    run.run_trainer(trainer, finish)


def build_dpo_trainer(
    run: TrainingRun[Recipe],
    model: Any,
    tokenizer: Any,
    examples: Sequence[dict[str, Any]],
    *,
    beta: float,
    nll_weight: float,
    trainer_class: type[TokenDPOTrainer] = TokenDPOTrainer,
    **options: Any,
) -> TokenDPOTrainer:
    """Build a DPO trainer on the examples of all steps in order, see `to_dpo_example`.

    `nll_weight` weighs the negative log-likelihood of the chosen completions, which DPO alone may lower; `options` are
    further arguments of `DPOConfig`.
    """
    from datasets import Dataset

    arguments = {**_offline_arguments(run), **options}
    if nll_weight:
        arguments |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_weight]}
    # Padding is masked, so any token will do.
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return trainer_class(
        model=model,
        args=DPOConfig(**arguments, max_length=None, beta=beta),
        train_dataset=Dataset.from_list(list(examples)),
        processing_class=tokenizer,
        data_collator=trainer_class.collator(pad_token_id=padding),
        peft_config=make_lora_config(run.recipe),
        callbacks=run.make_callbacks(),
    )


def to_dpo_example(pair: PreferencePair) -> dict[str, Any]:
    """A pair in the format of TRL's collator, with its loss masks."""
    return {
        "prompt_ids": pair.chosen.prompt_ids,
        "chosen_ids": pair.chosen.ids,
        "rejected_ids": pair.rejected.ids,
        LOSS_MASK: [pair.chosen.loss_mask, pair.rejected.loss_mask],
    }


def schedule_examples(examples: list[Any], recipe: Recipe) -> list[Any]:
    """The examples of all steps, in one shuffled pass after another; written out, so resuming keeps the order."""
    needed = recipe.optimiser.steps * recipe.rollouts.prompts
    rng = Random(f"examples:{recipe.seed}")
    scheduled: list[Any] = []
    while len(scheduled) < needed:
        scheduled += rng.sample(examples, len(examples))
    return scheduled[:needed]


def _offline_arguments(run: TrainingRun[Recipe]) -> dict[str, Any]:
    return {**run.trainer_arguments(run.recipe.rollouts.prompts), "train_sampling_strategy": "sequential"}
