"""TRL's trainers, adapted: GRPO with other advantages, forced first tokens and statistics, and SFT and DPO on tokens.

They override methods that TRL may change; `tests/integrations/` notices when one does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

from .rollouts import rollout_statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about the version of a vLLM that TRL would not be used with
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

__all__ = ["AdaptiveTrainer", "DPOConfig", "GRPOConfig", "SFTConfig", "TokenDPOTrainer", "TokenSFTTrainer"]

Credit = Literal["group", "reward", "tokens"]
"""Advantages: rewards relative to their group, plain rewards, or the return of each token."""


class WithoutTelemetry:
    """Keeps TRL from sending telemetry."""

    def _send_telemetry(self) -> None:
        """Send nothing."""


class AdaptiveTrainer(WithoutTelemetry, GRPOTrainer):  # type: ignore[misc]
    """GRPO on the completions of a `GroupRollouts`. One of the reward functions has to be `correctness`."""

    _buffered_inputs: Any

    def __init__(self, *args: Any, credit: Credit = "group", empty_tokens: int, **kwargs: Any) -> None:
        """`empty_tokens`: thinking with fewer tokens is logged as empty."""
        super().__init__(*args, **kwargs)
        self.credit, self.empty_tokens = credit, empty_tokens
        self.rollout_inputs: list[dict[str, Any]] = []
        self._rewards: Tensor | None = None
        self._loss_inputs: dict[str, Any] | None = None  # of the current loss, while it has no old log-probabilities

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rollout_inputs = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.credit == "reward":
            output["advantages"] = self._local_rewards()
        elif self.credit == "tokens":
            output["advantages"] = self._token_advantages(inputs, output)
        self._apply_weights(inputs, output)
        if "old_per_token_logps" in output:
            self._set_behaviour_logps(output, output["old_per_token_logps"])
        return output

    def _apply_weights(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> None:
        """Weight each completion, in its advantage and among the tokens over which the loss is averaged."""
        weights = torch.tensor([row["weight"] for row in inputs]).to(output["advantages"])
        output["advantages"] = output["advantages"] * weights.view(-1, *[1] * (output["advantages"].ndim - 1))
        tokens = (_loss_mask(output).sum(dim=1) * weights).sum()
        output["num_items_in_batch"] = self.accelerator.gather(tokens).sum()

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weights = torch.tensor([row["weight"] for row in inputs], device=rewards.device)
        unweighted = self.accelerator.gather(weights) == 0
        self._rewards = rewards
        right = self._local(rewards)[:, self.reward_func_names.index("correctness")].tolist()
        rows = [{**row, "right": value} for row, value in zip(inputs, right, strict=True)]
        for name, value in rollout_statistics(gather_object(rows), self.empty_tokens).items():
            self._log_metric(name, value)
        # TRL leaves NaN out of the mean of a group, where completions of weight 0 have no part either.
        rewards[unweighted] = torch.nan
        return rewards

    def _local(self, values: Tensor) -> Tensor:
        """This process's part of values gathered from all."""
        size, process = len(self.rollout_inputs), int(self.accelerator.process_index)
        return values[process * size :][:size]

    def _local_rewards(self) -> Tensor:
        """The weighted sum of rewards of each of this process's completions."""
        assert self._rewards is not None  # `_calculate_rewards` has just been called
        return self._local((self._rewards * self.reward_weights.to(self._rewards)).nansum(dim=1))

    def _token_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> Tensor:
        """The return of each token minus its baseline, [rows, tokens], over their root mean square.

        This is Reinforce with a baseline and without a KL term. The column `token_rewards` has (index, reward) pairs;
        the reward of the whole completion is at its last token. `token_values` has (index, expected return) pairs,
        each valid from its index on; before the first, the baseline is the mean return of the question's completions.
        """
        mask = _loss_mask(output)
        rewards = torch.zeros_like(mask, dtype=torch.float32)
        totals = self._local_rewards()
        for row, (columns, size) in enumerate(zip(inputs, output["completion_mask"].sum(dim=1).tolist(), strict=True)):
            rewards[row, size - 1] = totals[row]
            for index, reward in columns["token_rewards"]:
                rewards[row, index] += reward
        returns = rewards.flip(1).cumsum(1).flip(1)
        expected = returns[:, :1].view(-1, self.num_generations).mean(dim=1).repeat_interleave(self.num_generations)
        values = expected[:, None].repeat(1, mask.size(1))
        for row, columns in enumerate(inputs):
            for index, value in columns["token_values"]:
                values[row, index:] = value
        advantages: Tensor = (returns - values) * mask
        sums = torch.stack([advantages.square().sum(), mask.sum().float()])
        squares, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        normalised: Tensor = advantages / ((squares / max(count, 1.0)) ** 0.5 + 1e-4)
        return normalised

    def _set_behaviour_logps(self, output: dict[str, Any], policy_logps: Tensor) -> None:
        """Use the log-probability with which a token was really drawn, where it was not drawn from the policy.

        The importance ratio of the loss is then relative to the distribution that drew the completions.
        """
        drawn: Tensor = output["sampling_per_token_logps"]
        forced = ~drawn.isnan() & output["completion_mask"].bool()
        output["old_per_token_logps"] = output["sampling_per_token_logps"] = torch.where(forced, drawn, policy_logps)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._loss_inputs = None if "old_per_token_logps" in inputs else inputs
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """See TRL. If all samples belong to one step, the loss's own log-probabilities are those of the old policy."""
        logps, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            self._set_behaviour_logps(self._loss_inputs, logps.detach())
        return logps, *others

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not before:
            # All belong to one optimizer step, so they may be reordered: rows of similar length share a micro batch.
            self._buffered_inputs = list(_sort_by_length(self._buffered_inputs, self.args.per_device_train_batch_size))
        micro_batch: dict[str, Any] = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return micro_batch


def _loss_mask(output: dict[str, Any]) -> Tensor:
    mask: Tensor = output["completion_mask"] * output.get("tool_mask", torch.ones_like(output["completion_mask"]))
    return mask


def _sort_by_length(batches: Sequence[dict[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    """Regroup the rows of batches into parts of similar length, without unnecessary padding."""
    joined = {
        key: torch.cat([batch[key] for batch in batches]) if value.ndim else value for key, value in batches[0].items()
    }
    lengths, width = joined["completion_mask"].sum(dim=1), joined["completion_mask"].size(1)
    for rows in lengths.argsort(stable=True).split(size):
        longest = max(1, int(lengths[rows].max()))
        part = {key: value[rows] if value.ndim else value for key, value in joined.items()}
        for key, value in part.items():
            if value.ndim == 2 and value.size(1) == width and not key.startswith("prompt"):
                part[key] = value[:, :longest]
        yield part


class TokenSFTTrainer(WithoutTelemetry, SFTTrainer):  # type: ignore[misc]
    """SFT on token ids."""


class TokenCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Masks the forced tokens of pairs from the loss, by the column `loss_mask`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        for half in (0, 1):  # all chosen, then all rejected completions
            for row, example in enumerate(examples, half * len(examples)):
                mask, start = example["loss_mask"][half], len(example["prompt_ids"])
                batch["completion_mask"][row, start : start + len(mask)] = torch.tensor(mask)
        return batch


class TokenDPOTrainer(WithoutTelemetry, DPOTrainer):  # type: ignore[misc]
    """DPO on token ids, since retokenizing could give others, for words in unusual pieces or where a prompt ends."""

    collator: ClassVar[type[TokenCollator]] = TokenCollator

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset
