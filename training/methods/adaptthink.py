"""AdaptThink (arXiv 2505.13417): learn, question by question, whether to think at all.

Of the completions of a question one share is begun with the end of the thinking, the others with anything else. Their
advantage is `correct + delta * (not thinking) - reference`, not compared with the group; the ratio of the loss is that
to how they were drawn, so that the forced first tokens teach the policy what it would learn from its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from ..config import Alarm, Recipe, Section
from ..data import schedule
from ..preflight import CheckedRecipe, check
from ..reference import reference_shares
from ..rewards import Correctness, GroupBrevity, NoThinkBonus, ReferenceBaseline
from ..rewards.base import NO_THINK, THINK, Reward
from ..rollouts import GroupRollouts
from ..sampling import Sampler
from ..training_run import TrainingRun


class AdaptThink(Section):
    """delta: what not thinking is worth, in accuracy. share: of completions begun without thinking.

    importance: "sequence" as in the paper, the ratio's geometric mean over a completion's tokens, which lets a mode
    that the policy never takes be learnt; "token" is unbiased but for clipping. clip: how far ratios count from 1.
    brevity: what the shortest right thinking of a question is worth more than the longest; 0 in the paper, which
    leaves thinking as long as it is. start: text of one token that begins thinking, the paper's "Alright"; without it
    the model draws its own.
    no_think_tokens: most tokens of an answer without thinking.
    """

    delta: float = Field(default=0.05, ge=0, le=1)
    share: float = Field(default=0.5, gt=0, lt=1)
    brevity: float = Field(default=0.0, ge=0, lt=1)
    reference_samples: int = Field(default=16, ge=1)
    importance: Literal["sequence", "token"] = "sequence"
    clip: float = Field(default=0.2, gt=0)
    start: str | None = None
    no_think_tokens: int | None = Field(default=None, ge=2)


class AdaptThinkRecipe(Recipe):
    """The recipe of this method."""

    adaptthink: AdaptThink = AdaptThink()
    alarm: Alarm = Alarm()


def plan(generations: int, share: float) -> list[str]:
    """How the completions of a group are begun: both modes, whatever the share."""
    without = min(generations - 1, max(1, round(generations * share)))
    return [NO_THINK] * without + [THINK] * (generations - without)


def validate_recipe(recipe: AdaptThinkRecipe) -> CheckedRecipe:
    """See `checks.check`."""
    return check(recipe, no_think_tokens=recipe.adaptthink.no_think_tokens, start=recipe.adaptthink.start)


def run(recipe: AdaptThinkRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Train, or go on training."""
    own = recipe.adaptthink
    begun = plan(recipe.rollouts.generations, own.share)
    engine = running.load(recipe)
    sampler = Sampler(
        engine,
        recipe.rollouts,
        ground.markers,
        share=begun.count(NO_THINK) / len(begun),
        start=own.start,
        no_think_tokens=own.no_think_tokens,
    )
    with Correctness(ground.markers.close) as correct:
        shares = reference_shares(
            sampler, ground.rows, own.reference_samples, recipe.out / "reference.jsonl", recipe.seed, correct, say
        )
        rows = [{**row, "reference": share} for row, share in zip(ground.rows, shares, strict=True)]
        say(f"the model before training is right on {sum(shares) / len(shares):.1%} when it thinks")
        rewards: list[Reward] = [correct, NoThinkBonus(own.delta, ground.markers.close), ReferenceBaseline()]
        if own.brevity:
            rewards.append(GroupBrevity(correct, own.brevity, thinking_only=True))
        running.reinforce(
            recipe,
            sampler,
            GroupRollouts(sampler, begun, recipe.seed),
            rewards,
            schedule(rows, recipe.optimiser.steps, recipe.rollouts.prompts, recipe.seed),
            credit="reward",
            alarm=recipe.alarm,
            options={
                "importance_sampling_level": own.importance,
                "epsilon": own.clip,
                "loss_type": "grpo",
                "scale_rewards": "none",
            },
        )


RECIPE = AdaptThinkRecipe
