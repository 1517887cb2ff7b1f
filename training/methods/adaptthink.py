"""AdaptThink (arXiv 2505.13417): learn for each question whether to think at all.

A share of the completions of a question is forced to skip the thinking, the others to think. Their advantage is
`correct + delta * (no thinking) - reference`, and the importance ratio is relative to how they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from ..config import Alarm, Recipe, Section
from ..offline import map_samples
from ..preflight import CheckedRecipe, check_recipe
from ..rewards import NO_THINK, THINK, Correctness, GroupBrevity, Reward, get_modes, number_column
from ..rollouts import GroupRollouts
from ..training_run import TrainingRun
from . import Method


class AdaptThink(Section):
    """Settings."""

    delta: float = Field(default=0.05, ge=0, le=1)  # reward for not thinking, in units of accuracy
    share: float = Field(default=0.5, gt=0, lt=1)  # of the completions of a group that are forced not to think
    brevity: float = Field(default=0.0, ge=0, lt=1)  # of the shortest right thinking over the longest; 0 in the paper
    reference_samples: int = Field(default=16, ge=1)  # a question, for the accuracy before training
    # "sequence" (as in the paper) takes the geometric mean of the ratio over a completion, with which even a mode that
    # the policy never takes is learned; "token" is unbiased except for clipping
    importance: Literal["sequence", "token"] = "sequence"
    clip: float = Field(default=0.2, gt=0)  # clipping range of the importance ratio
    # one-token text that starts forced thinking (the paper's "Alright"); by default the token is sampled
    start: str | None = None
    no_think_tokens: int | None = Field(default=None, ge=2)  # token limit of completions forced not to think


class AdaptThinkRecipe(Recipe):
    """The recipe of this method."""

    adaptthink: AdaptThink = AdaptThink()
    alarm: Alarm = Alarm()


class NoThinkBonus(Reward):
    """`delta` for a completion without thinking; that wins unless thinking improves the accuracy by more."""

    name = "no_think_bonus"

    def __init__(self, delta: float = 0.05, marker: str = "</think>") -> None:
        """Prepare the reward; `marker` closes the thinking, and shows the mode without a column `mode`."""
        self.delta, self.marker = delta, marker

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [self.delta * (mode == NO_THINK) for mode in get_modes(completions, columns, self.marker)]


class ReferenceBaseline(Reward):
    """Minus the accuracy of the model before training when it thinks; column `reference`."""

    name = "reference_baseline"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [-share for share in number_column(columns, "reference", self.name)]


def plan_group(generations: int, share: float) -> list[str]:
    """The start modes of a group; both modes occur, whatever the share."""
    no_think = min(generations - 1, max(1, round(generations * share)))
    return [NO_THINK] * no_think + [THINK] * (generations - no_think)


def _validate(recipe: AdaptThinkRecipe) -> CheckedRecipe:
    return check_recipe(recipe, no_think_tokens=recipe.adaptthink.no_think_tokens, start=recipe.adaptthink.start)


def _train(run: TrainingRun[AdaptThinkRecipe]) -> None:
    recipe, settings, close = run.recipe, run.recipe.adaptthink, run.checked.markers.close
    plan = plan_group(recipe.rollouts.generations, settings.share)
    share = plan.count(NO_THINK) / len(plan)
    sampler = run.make_sampler(share=share, start=settings.start, no_think_tokens=settings.no_think_tokens)
    with Correctness(close) as correct:
        accuracies = map_samples(
            run,
            sampler,
            lambda traces: fmean(trace.right for trace in traces),
            "reference",
            settings.reference_samples,
            start_mode=THINK,
        )
        rows = [{**row, "reference": accuracy} for row, accuracy in zip(run.checked.rows, accuracies, strict=True)]
        run.log(f"before training, {fmean(accuracies):.1%} of thinking completions are right")
        rewards: list[Reward] = [correct, NoThinkBonus(settings.delta, close), ReferenceBaseline()]
        if settings.brevity:
            rewards.append(GroupBrevity(correct, settings.brevity, thinking_only=True))
        run.train_grpo(
            GroupRollouts(sampler, recipe.seed, plan),
            rewards,
            credit="reward",
            alarm=recipe.alarm,
            rows=rows,
            importance_sampling_level=settings.importance,
            epsilon=settings.clip,
            loss_type="grpo",
            scale_rewards="none",
        )


METHOD = Method(recipe=AdaptThinkRecipe, validate=_validate, train=_train)
