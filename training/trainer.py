"""TRL's GRPOTrainer with what adaptive thinking needs: advantages of other kinds, first tokens that were not drawn from
the policy, figures by mode and tier, and an end where numbers stop being numbers.

It overrides methods that TRL does not promise to keep;
`tests/unit/training/test_offpolicy.py` notices when one changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

from .sampling import DivergedError
from .statistics import statistics
from .trl_compat import GRPOTrainer

Credit = Literal["group", "reward", "tokens"]
"""What advantages are: rewards against their group, rewards as they are, or the returns of each token."""


class AdaptiveTrainer(GRPOTrainer):  # type: ignore[misc]
    """See the module. `correctness` among the reward functions tells what is right; `empty_tokens` see `Alarm`."""

    _buffered_inputs: Any

    def __init__(self, *args: Any, credit: Credit = "group", empty_tokens: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.credit, self.empty_tokens = credit, empty_tokens
        self.rollout_inputs: list[dict[str, Any]] = []
        self._scored: Tensor | None = None
        self._learnt: dict[str, Any] | None = None  # of which the loss is being worked out, while it lacks a policy

    def _send_telemetry(self) -> None:
        """Tell nobody."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rollout_inputs = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.credit == "reward":
            output["advantages"] = self._local(
                (self._rewards() * self.reward_weights.to(self._rewards())).nansum(dim=1)
            )
        elif self.credit == "tokens":
            output["advantages"] = self._returns(inputs, output)
        self._weigh(inputs, output)
        if "old_per_token_logps" in output:
            self._behave(output, output["old_per_token_logps"])
        return output

    def _weigh(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> None:
        """Let each completion count for its weight: in its advantage, and among the tokens that the loss averages."""
        weights = torch.tensor([row["weight"] for row in inputs]).to(output["advantages"])
        output["advantages"] = output["advantages"] * weights.view(-1, *[1] * (output["advantages"].ndim - 1))
        mask = output["completion_mask"] * output.get("tool_mask", torch.ones_like(output["completion_mask"]))
        tokens = (mask.sum(dim=1) * weights).sum()
        output["num_items_in_batch"] = self.accelerator.gather(tokens).sum()

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weights = torch.tensor([row["weight"] for row in inputs], device=rewards.device)
        unweighted = self.accelerator.gather(weights) == 0
        self._scored = rewards
        right = self._local(rewards)[:, self.reward_func_names.index("correctness")].tolist()
        rows = [{**row, "right": value} for row, value in zip(inputs, right, strict=True)]
        for name, value in statistics(gather_object(rows), self.empty_tokens).items():
            self._log_metric(name, value)
        # What counts for nothing has no part in the mean of its group either, which TRL takes of what is a number.
        rewards[unweighted] = torch.nan
        return rewards

    def _rewards(self) -> Tensor:
        assert self._scored is not None  # `_calculate_rewards` has just been called
        return self._scored

    def _local(self, values: Tensor) -> Tensor:
        """This process's part of what was gathered from all."""
        size = len(self.rollout_inputs)
        return values[self.accelerator.process_index * size :][:size]

    def _returns(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> Tensor:
        """What each token still brings beyond what was to be expected, [rows, tokens], over the root mean square of all
        that are learnt: Reinforce with a baseline, without a KL term.

        Rewards of single tokens are the column `token_rewards`, pairs of place and reward; those of the whole
        completion stand at its last token. `token_values` are pairs of a place and what was to be expected from there
        on; before the first, that is what completions of the same question bring on average.
        """
        mask = output["completion_mask"] * output.get("tool_mask", torch.ones_like(output["completion_mask"]))
        rewards = torch.zeros_like(mask, dtype=torch.float32)
        whole = self._local((self._rewards() * self.reward_weights.to(self._rewards())).nansum(dim=1))
        for row, (columns, size) in enumerate(zip(inputs, output["completion_mask"].sum(dim=1).tolist(), strict=True)):
            rewards[row, size - 1] = whole[row]
            for place, reward in columns["token_rewards"]:
                rewards[row, place] += reward
        returns = rewards.flip(1).cumsum(1).flip(1)
        expected = returns[:, :1].view(-1, self.num_generations).mean(dim=1).repeat_interleave(self.num_generations)
        values = expected[:, None].repeat(1, mask.size(1))
        for row, columns in enumerate(inputs):
            for place, value in columns["token_values"]:
                values[row, place:] = value
        left = (returns - values) * mask
        totals = torch.stack([left.square().sum(), mask.sum().float()])
        squares, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        made: Tensor = left / ((squares / max(count, 1.0)) ** 0.5 + 1e-4)
        return made

    def _behave(self, output: dict[str, Any], own: Tensor) -> None:
        """Put the log-probabilities of tokens that were not drawn from the policy in place of the policy's own.

        The ratio of the loss is then that of the policy to what really drew the completions. own: [rows, tokens], of
        the policy that drew the others.
        """
        drawn: Tensor = output["sampling_per_token_logps"]
        known = ~drawn.isnan() & output["completion_mask"].bool()
        output["old_per_token_logps"] = output["sampling_per_token_logps"] = torch.where(known, drawn, own)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._learnt = None if "old_per_token_logps" in inputs else inputs
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._learnt = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """See TRL. Where all that was drawn belongs to one step, what the loss works out anyway is the policy's own."""
        found, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._learnt is not None:
            self._behave(self._learnt, found.detach())
        return found, *others

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not before:
            # All of it belongs to one step of the optimiser, so the order is free: rows of a length stand together.
            parts = by_length(joined(self._buffered_inputs), self.args.per_device_train_batch_size)
            self._buffered_inputs = [part for _, part in parts]
        again: dict[str, Any] = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return again

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; raises DivergedError before a loss that is no number reaches the weights."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        check_finite(loss, self.state.global_step + 1)
        return loss


def joined(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batches as one; what is no row of any stands for all."""
    return {
        key: torch.cat([batch[key] for batch in batches]) if value.ndim else value for key, value in batches[0].items()
    }


def by_length(batch: dict[str, Any], size: int) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """A batch in parts of rows about equally long, without padding that none of them needs; and which rows they are."""
    lengths = batch["completion_mask"].sum(dim=1)
    width = batch["completion_mask"].size(1)
    for rows in lengths.argsort(stable=True).split(size):
        longest = max(1, int(lengths[rows].max()))
        part = {key: value[rows] if value.ndim else value for key, value in batch.items()}
        yield (
            rows,
            {
                key: value[:, :longest]
                if value.ndim == 2 and value.size(1) == width and not key.startswith("prompt")
                else value
                for key, value in part.items()
            },
        )


def check_finite(loss: Tensor, step: int) -> None:
    """Raise DivergedError for a loss that is no number."""
    if not bool(loss.isfinite().all()):
        raise DivergedError(
            f"the loss of step {step} is {loss.item()}: the training has diverged; the last good checkpoint is kept: "
            "go on from it (--resume) with a lower learning rate"
        )
