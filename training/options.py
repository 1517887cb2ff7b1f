"""What a recipe's rollouts are to a session: its options, with the policies and the engine that a training can have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..controller.budgets import TIERS
from ..controller.options import GenerationOptions
from ..controller.policies import make_policies, make_policy
from ..errors import CapabilityError, OptionError
from .config import Rollouts

_NOT_ASKED = frozenset(
    {
        *("model", "dtype", "seed", "logits_processors", "generation_config"),
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    }
)
"""Arguments of vLLM that follow from its being given the weights of the policy, in the policy's process."""


def build_options(settings: Rollouts) -> GenerationOptions:
    """The session's options for these rollouts; raises OptionError for policies that a training cannot have."""
    policies = dict(settings.policies)
    strategy: Any = "tiers"
    if settings.thinking_budget is not None:
        policies = {"budget": {}, **policies}
        strategy = {
            name: replace(tier, thinking=min(tier.thinking, settings.thinking_budget)) for name, tier in TIERS.items()
        }
    made = make_policies(None, [make_policy(name, dict(found)) for name, found in policies.items()])
    if settings.vllm and settings.engine != "vllm":
        raise OptionError("rollouts.vllm has arguments for an engine that is not used; add `engine: vllm`")
    if ours := sorted(_NOT_ASKED & settings.vllm.keys()):
        raise OptionError(f"rollouts.vllm sets {', '.join(ours)}, which is up to the training; leave it out")
    for policy in made:
        if wanted := policy.needs & {"signals", "hidden", "helper", "steer", "shortcut"}:
            raise CapabilityError(
                f"policy {policy.name!r} needs {', '.join(sorted(wanted))}, which rollouts of a training do not have"
            )
    return GenerationOptions(
        preset="off",
        policies=made,
        max_new_tokens=settings.max_new_tokens,
        answer_reserve=settings.answer_reserve,
        strategy=strategy,
    )
