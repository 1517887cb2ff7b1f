"""DLER (arXiv 2510.15110): be right within a hard limit of tokens, by an optimisation that stands such rewards.

GRPO on free completions of at most `rollouts.max_new_tokens`; one that is cut there has no reward. Advantages are
divided by the standard deviation of the batch in place of their group's, and the upper clip is higher. Different: a
group whose completions are all right or all wrong is not sampled again, it has no advantage; the adaptive limits
and the merging are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from ..config import AlwaysThinks, Recipe, Section
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, check_recipe
from ..rewards import Correctness, Reward, require_column
from ..rollouts import GroupRollouts
from ..sampling import FREE
from ..training_run import TrainingRun
from . import Method


class Dler(Section):
    """Settings."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)  # higher, so that unlikely tokens can become likelier


class DlerRecipe(Recipe):
    """The recipe of this method."""

    dler: Dler = Dler()
    alarm: AlwaysThinks = AlwaysThinks()


class Truncation(Reward):
    """Takes a right answer's reward back where the completion was cut; column `finish_reason`."""

    name = "truncation"

    def __init__(self, correct: Correctness) -> None:
        self.correct = correct

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        cut = [reason == "length" for reason in require_column(columns, "finish_reason", self.name)]
        right = self.correct(prompts, completions, **columns)
        return [-float(value or 0.0) if was_cut else 0.0 for value, was_cut in zip(right, cut, strict=True)]


def _validate(recipe: DlerRecipe) -> CheckedRecipe:
    return check_recipe(recipe, resident=ResidentModels())


def trainer_options(settings: Dler) -> dict[str, Any]:
    """What `GRPOConfig` gets for this method."""
    return {"scale_rewards": "batch", "epsilon": settings.clip_low, "epsilon_high": settings.clip_high, "beta": 0.0}


def _train(run: TrainingRun[DlerRecipe]) -> None:
    recipe = run.recipe
    with Correctness(run.checked.markers.close) as correct:
        trainer = run.build_grpo_trainer(
            GroupRollouts(run.make_sampler(), [FREE] * recipe.rollouts.generations, recipe.seed),
            [correct, Truncation(correct)],
            credit="group",
            alarm=recipe.alarm,
            **trainer_options(recipe.dler),
        )
        run.run_trainer(trainer)


METHOD = Method(recipe=DlerRecipe, validate=_validate, train=_train)
