"""SER-RL (arXiv 2506.15647): be right, and among one's own right answers to a question rather brief than long.

GRPO on free completions. The paper's reward is not published; `GroupBrevity` is ours.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from ..config import AlwaysThinks, Recipe, RecipeError, Section
from ..data import schedule
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, check
from ..rewards import Correctness, GroupBrevity, HintBudget, TierAdherence
from ..rewards.base import Reward
from ..rollouts import GroupRollouts
from ..sampling import FREE, Sampler
from ..training_run import TrainingRun


class Ser(Section):
    """brevity: its weight beside being right; least: the share of a group that has to be right before it counts.

    adherence: weight of keeping to the tier's budget, hints: of being brief after a hint, 0 for neither. after_hint:
    tokens that are brief. kl: weight of staying near the model before training.
    """

    brevity: float = Field(default=0.2, gt=0, lt=1)
    least: float = Field(default=0.5, ge=0, le=1)
    adherence: float = Field(default=0.0, ge=0)
    hints: float = Field(default=0.0, ge=0)
    after_hint: int = Field(default=128, ge=1)
    kl: float = Field(default=0.0, ge=0)


class SerRecipe(Recipe):
    """The recipe of this method."""

    ser: Ser = Ser()
    alarm: AlwaysThinks = AlwaysThinks()


def validate_recipe(recipe: SerRecipe) -> CheckedRecipe:
    """See `checks.check`."""
    if recipe.ser.hints and "hint" not in recipe.rollouts.policies:
        raise RecipeError(
            f"ser.hints is {recipe.ser.hints:g}, and rollouts.policies gives no hint to be brief after; accepted: "
            "`policies: {hint: {}}`, or 0"
        )
    return check(recipe, held=ResidentModels(reference=bool(recipe.ser.kl)))


def run(recipe: SerRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Train, or go on training."""
    own = recipe.ser
    sampler = Sampler(running.load(recipe), recipe.rollouts, ground.markers)
    with Correctness(ground.markers.close) as correct:
        weighed: list[tuple[Reward, float]] = [(correct, 1.0), (GroupBrevity(correct, own.brevity, own.least), 1.0)]
        weighed += [(TierAdherence(), own.adherence)] if own.adherence else []
        weighed += [(HintBudget(own.after_hint), own.hints)] if own.hints else []
        running.reinforce(
            recipe,
            sampler,
            GroupRollouts(sampler, [FREE] * recipe.rollouts.generations, recipe.seed),
            [reward for reward, _ in weighed],
            schedule(ground.rows, recipe.optimiser.steps, recipe.rollouts.prompts, recipe.seed),
            credit="group",
            alarm=recipe.alarm,
            options={"reward_weights": [weight for _, weight in weighed], "beta": own.kl},
        )


RECIPE = SerRecipe
