"""SER-RL (arXiv 2506.15647): be right, and brief relative to one's own right answers to the same question.

GRPO on free completions. We found no formula of its reward; `GroupBrevity` is ours.
"""

from __future__ import annotations

from pydantic import Field

from ..config import AlwaysThinks, Recipe, RecipeError, Section
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, check_recipe
from ..rewards import Correctness, GroupBrevity, HintBudget, Reward, TierAdherence
from ..rollouts import GroupRollouts
from ..sampling import FREE
from ..training_run import TrainingRun
from . import Method


class Ser(Section):
    """Settings."""

    brevity: float = Field(default=0.2, gt=0, lt=1)  # its weight, relative to 1 for a right answer
    min_accuracy: float = Field(default=0.5, ge=0, le=1)  # share of a group that is right before brevity counts
    adherence: float = Field(default=0.0, ge=0)  # weight of keeping to the tier's budget; 0 for none
    hint_weight: float = Field(default=0.0, ge=0)  # weight of being brief after a hint; 0 for none
    after_hint_tokens: int = Field(default=128, ge=1)  # thinking tokens after a hint that are still brief
    kl: float = Field(default=0.0, ge=0)  # weight of the KL divergence from the model before training


class SerRecipe(Recipe):
    """The recipe of this method."""

    ser: Ser = Ser()
    alarm: AlwaysThinks = AlwaysThinks()


def _validate(recipe: SerRecipe) -> CheckedRecipe:
    if recipe.ser.hint_weight and "hint" not in recipe.rollouts.policies:
        raise RecipeError(
            f"ser.hint_weight is {recipe.ser.hint_weight:g}, but rollouts.policies has no hint; add "
            "`policies: {hint: {}}`, or set it to 0",
            code="no_hint_policy",
        )
    return check_recipe(recipe, resident=ResidentModels(reference=bool(recipe.ser.kl)))


def _train(run: TrainingRun[SerRecipe]) -> None:
    recipe, settings = run.recipe, run.recipe.ser
    with Correctness(run.checked.markers.close) as correct:
        weighted: list[tuple[Reward, float]] = [
            (correct, 1.0),
            (GroupBrevity(correct, settings.brevity, settings.min_accuracy), 1.0),
        ]
        if settings.adherence:
            weighted.append((TierAdherence(), settings.adherence))
        if settings.hint_weight:
            weighted.append((HintBudget(settings.after_hint_tokens), settings.hint_weight))
        trainer = run.build_grpo_trainer(
            GroupRollouts(run.make_sampler(), [FREE] * recipe.rollouts.generations, recipe.seed),
            [reward for reward, _ in weighted],
            credit="group",
            alarm=recipe.alarm,
            reward_weights=[weight for _, weight in weighted],
            beta=settings.kl,
        )
        run.run_trainer(trainer)


METHOD = Method(recipe=SerRecipe, validate=_validate, train=_train)
