"""Trainings on completions that stand there already, on TRL's SFT and DPO trainers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from torch import Tensor, tensor

from .adapters import make_adapter
from .config import Recipe
from .pairs import PreferencePair
from .research.heads import Heads
from .saving import Finish
from .traces import SampledTrace
from .trainer import check_finite
from .training_run import TrainingRun, accumulated, common_arguments
from .trl_compat import DataCollatorForPreference, DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

LEARNT, OBJECTIVE = "learnt", "objective"
"""Columns of pairs: which tokens of both count, and the head that they are for."""


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
    """See `_Finite`. Takes pairs as tokens: from their text they would be others where the model wrote a word in pieces
    of its own, or where a completion's beginning merges with the prompt's end."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in (LEARNT, OBJECTIVE) if name not in self._signature_columns]


class _Collator(DataCollatorForPreference):  # type: ignore[misc]
    """Gives what was forced no part in the loss, and keeps the objective of a batch that has one."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """See TRL."""
        batch: dict[str, Any] = super().torch_call(examples)
        for half in (0, 1):  # all that were chosen, then all that were rejected
            for row, example in enumerate(examples, half * len(examples)):
                learnt, start = example[LEARNT][half], len(example["prompt_ids"])
                batch["completion_mask"][row, start : start + len(learnt)] = tensor(learnt)
        if OBJECTIVE in examples[0]:
            batch[OBJECTIVE] = examples[0][OBJECTIVE]
        return batch


def _collator(tokenizer: Any) -> _Collator:
    """Padding does not count, so that any token does."""
    return _Collator(pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


class HeadedDPO(FiniteDPO):
    """DPO on batches of one objective each, through that one's head."""

    heads: Heads

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        self.heads.used = inputs[OBJECTIVE]
        return super()._compute_loss(model, {k: v for k, v in inputs.items() if k != OBJECTIVE}, return_outputs)


def train_sft(
    running: TrainingRun,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    traces: Sequence[SampledTrace],
    finish: Finish | None = None,
) -> None:
    """Learn to write these completions, what was forced in them left out, and write the model.

    finish: see `TrainingRun.train`.
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
        peft_config=make_adapter(recipe),
        callbacks=running.callbacks(),
    )
    running.train(trainer, recipe, finish)


def train_dpo(
    running: TrainingRun,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[PreferencePair],
    beta: float,
    likelihood: float,
) -> None:
    """Learn by DPO to prefer the chosen completions, and write the model; likelihood: see `train_mo_dpo`."""
    from datasets import Dataset

    trainer = FiniteDPO(
        model=model,
        args=DPOConfig(**_arguments(running, recipe), **_losses(likelihood), max_length=None, beta=beta),
        train_dataset=Dataset.from_list(_in_order(_tokens(pairs), recipe)),
        processing_class=tokenizer,
        data_collator=_collator(tokenizer),
        peft_config=make_adapter(recipe),
        callbacks=running.callbacks(),
    )
    running.train(trainer, recipe)


def train_mo_dpo(
    running: TrainingRun,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Sequence[PreferencePair]],
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

    # A batch goes through one of the heads.
    options = {**_arguments(running, recipe), "ddp_find_unused_parameters": True, **_losses(likelihood)}
    trainer = HeadedDPO(
        model=model,
        args=DPOConfig(**options, max_length=None, beta=beta),
        train_dataset=Dataset.from_list(_by_turns([_tokens(same) for same in pairs], recipe)),
        processing_class=tokenizer,
        data_collator=_collator(tokenizer),
        callbacks=running.callbacks(),
    )
    trainer.heads = heads
    running.train(trainer, recipe, finish)


def _tokens(pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    """Pairs as TRL's collator wants them, and which tokens are the model's own."""
    return [
        {
            "prompt_ids": p.chosen.prompt_ids,
            "chosen_ids": p.chosen.ids,
            "rejected_ids": p.rejected.ids,
            LEARNT: [[own for _, own in zip(t.ids, t.learnt, strict=True)] for t in (p.chosen, p.rejected)],
        }
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


def _losses(likelihood: float) -> dict[str, Any]:
    """What is learnt beside preference."""
    return {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, likelihood]} if likelihood else {}


def _arguments(running: TrainingRun, recipe: Recipe) -> dict[str, Any]:
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
