"""Trainings on completions that stand there already, on TRL's SFT and DPO trainers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from torch import Tensor

from .config import Recipe
from .heads import Heads
from .libraries import DataCollatorForPreference, DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from .pairs import Pair
from .running import Running, accumulated, adapter, common_arguments
from .saving import Finish
from .traces import Trace
from .trainer import check_finite

OBJECTIVE = "objective"


class _Finite:
    """Raises DivergedError before a loss that is no number reaches the weights; tells nobody that it runs."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """See `Trainer`."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        check_finite(loss, self.state.global_step + 1)  # type: ignore[attr-defined]
        return loss

    def _send_telemetry(self) -> None:
        """Tell nobody."""


class FiniteSFT(_Finite, SFTTrainer):  # type: ignore[misc]
    """See `_Finite`."""


class FiniteDPO(_Finite, DPOTrainer):  # type: ignore[misc]
    """See `_Finite`."""


class _Collator(DataCollatorForPreference):  # type: ignore[misc]
    """Keeps the objective of a batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """See TRL."""
        return {**super().torch_call(examples), OBJECTIVE: examples[0][OBJECTIVE]}


class HeadedDPO(FiniteDPO):
    """DPO on batches of one objective each, through that one's head."""

    heads: Heads

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if OBJECTIVE not in self._signature_columns:
            self._signature_columns.append(OBJECTIVE)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        self.heads.used = inputs[OBJECTIVE]
        return super()._compute_loss(model, {k: v for k, v in inputs.items() if k != OBJECTIVE}, return_outputs)


def supervise(
    running: Running,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    traces: Sequence[Trace],
    finish: Finish | None = None,
) -> None:
    """Learn to write these completions, what was forced in them left out, and write the model.

    finish: see `Running.train`.
    """
    from datasets import Dataset

    rows = [
        {
            "input_ids": [*trace.prompt_ids, *trace.ids],
            "labels": [
                *[-100] * len(trace.prompt_ids),
                *(token if learnt else -100 for token, learnt in zip(trace.ids, trace.learnt, strict=True)),
            ],
        }
        for trace in traces
    ]
    trainer = FiniteSFT(
        model=model,
        args=SFTConfig(**_arguments(running, recipe), max_length=None, packing=False),
        train_dataset=Dataset.from_list(_in_order(rows, recipe)),
        processing_class=tokenizer,
        peft_config=adapter(recipe),
        callbacks=running.callbacks(),
    )
    running.train(trainer, recipe, finish)


def prefer(running: Running, recipe: Recipe, model: Any, tokenizer: Any, pairs: Sequence[Pair], beta: float) -> None:
    """Learn by DPO to prefer the chosen completions, and write the model."""
    from datasets import Dataset

    trainer = FiniteDPO(
        model=model,
        args=DPOConfig(**_arguments(running, recipe), max_length=None, beta=beta),
        train_dataset=Dataset.from_list(_in_order(_written(pairs, tokenizer), recipe)),
        processing_class=tokenizer,
        peft_config=adapter(recipe),
        callbacks=running.callbacks(),
    )
    running.train(trainer, recipe)


def prefer_each(
    running: Running,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Sequence[Pair]],
    heads: Heads,
    beta: float,
    likelihood: float,
    finish: Finish,
) -> None:
    """Learn by DPO to prefer the chosen completions of each objective by its head, and write the model.

    pairs: of each of the heads. Batches in memory are of one objective, which take turns. likelihood: the weight of the
    loss of chosen completions.
    """
    from datasets import Dataset

    options: dict[str, Any] = {"ddp_find_unused_parameters": True}  # a batch goes through one of the heads
    if likelihood:
        options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, likelihood]}
    trainer = HeadedDPO(
        model=model,
        args=DPOConfig(**_arguments(running, recipe) | options, max_length=None, beta=beta),
        train_dataset=Dataset.from_list(_by_turns([_written(same, tokenizer) for same in pairs], recipe)),
        processing_class=tokenizer,
        data_collator=_Collator(pad_token_id=tokenizer.pad_token_id),
        callbacks=running.callbacks(),
    )
    trainer.heads = heads
    running.train(trainer, recipe, finish)


def _written(pairs: Sequence[Pair], tokenizer: Any) -> list[dict[str, Any]]:
    """Pairs as TRL wants them."""

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return [
        {"prompt": text(p.chosen.prompt_ids), "chosen": text(p.chosen.ids), "rejected": text(p.rejected.ids)}
        for p in pairs
    ]


def _by_turns(rows: Sequence[list[dict[str, Any]]], recipe: Recipe) -> list[dict[str, Any]]:
    """The examples of all steps, batches of each objective after one another."""
    size = recipe.optimiser.micro_batch
    each = [_in_order(same, recipe) for same in rows]
    made: list[dict[str, Any]] = []
    for number in range(recipe.optimiser.steps * recipe.rollouts.prompts // size):
        turn, objective = divmod(number, len(rows))
        made += [{**row, OBJECTIVE: objective} for row in each[objective][turn * size : (turn + 1) * size]]
    return made


def _arguments(running: Running, recipe: Recipe) -> dict[str, Any]:
    accumulate = accumulated(recipe, recipe.rollouts.prompts)
    return {**common_arguments(recipe, running.folder, accumulate), "train_sampling_strategy": "sequential"}


def _in_order(rows: list[Any], recipe: Recipe) -> list[Any]:
    """The examples of all steps, one shuffled pass after the other: written out, so that resuming keeps the order."""
    size = recipe.rollouts.prompts
    rng = Random(f"examples:{recipe.seed}")
    made: list[Any] = []
    while len(made) < recipe.optimiser.steps * size:
        made += rng.sample(rows, len(rows))
    return made[: recipe.optimiser.steps * size]
