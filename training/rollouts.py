"""Rollouts for TRL's GRPOTrainer: completions of our sampler, with a mask of what the model did not write itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.runner import batch_seed
from .sampling import FREE, CompletionRequest, Rollout, Sampler

FIELDS = (
    *("mode", "begun", "chance", "response", "thinking_tokens", "response_tokens", "finish_reason", "after_hint"),
    *("weight", "solved"),
)
"""What rewards and statistics are told of each completion, as columns."""


class GroupRollouts:
    """A `rollout_func`: called with prompts, each standing there once for each of its completions.

    plan: how the completions of a group are begun; the loss has the first token of begun ones too, which is the choice
    to think. The tier of a prompt is the column `tier` of the trainer's inputs.
    """

    def __init__(self, sampler: Sampler, plan: Sequence[str], seed: int) -> None:
        self.sampler, self.plan, self.seed = sampler, tuple(plan), seed

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """See TRL's `RolloutFunc`."""
        from .trl_compat import unwrap_model_for_generation

        first = trainer.accelerator.process_index * len(prompts)
        asks = [
            CompletionRequest(
                prompt, row["tier"], self.plan[(first + i) % len(self.plan)] if trainer.model.training else FREE
            )
            for i, (prompt, row) in enumerate(zip(prompts, trainer.rollout_inputs, strict=True))
        ]
        seed = batch_seed(self.seed, trainer.state.global_step, trainer.accelerator.process_index)
        unwrapped = unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        )
        with unwrapped as model, trainer.accelerator.autocast():
            self.sampler.engine.model = model.get_base_model() if hasattr(model, "get_base_model") else model
            made = self.sample(asks, trainer.rollout_inputs, seed)
            more = self.more(made, trainer.rollout_inputs, seed)
        return {**self.fields(made), **more}

    def sample(self, asks: Sequence[CompletionRequest], rows: Sequence[Mapping[str, Any]], seed: int) -> list[Rollout]:
        """A completion for each ask, which stand beside their rows of the dataset."""
        return self.sampler(asks, seed)

    def more(self, made: Sequence[Rollout], rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, list[Any]]:
        """Further columns of these completions, which stand beside their rows of the dataset."""
        return {}

    def fields(self, made: Sequence[Rollout]) -> dict[str, Any]:
        """Rollouts as TRL wants them. A log-probability of None says that the token was drawn from the model itself."""
        return {
            "prompt_ids": [list(r.prompt_ids) for r in made],
            "completion_ids": [list(r.ids) for r in made],
            "logprobs": [[r.drawn, *[None] * (len(r.ids) - 1)] for r in made],
            "env_mask": [self.learnt(r) for r in made],
            **{name: [getattr(r, name) for r in made] for name in FIELDS},
        }

    def learnt(self, rollout: Rollout) -> list[int]:
        """1 for each token that the loss has, 0 for what others wrote."""
        return [int(not forced) for forced in rollout.forced]
