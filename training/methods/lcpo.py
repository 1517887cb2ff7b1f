"""LCPO-Max of L1 (arXiv 2503.04697): be right within a number of tokens that the prompt states.

Each question gets a limit, drawn evenly between `least` and `most`, and the authors' sentence about it. The reward of
a right answer is clip(alpha * (limit - tokens) + delta, 0, 1), of a wrong one 0; GRPO on free completions. At run time
the strategy `lcpo` states the budget that applies in the same sentence. Different: the authors train Exact first and
Max from there; the KL term is off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from pydantic import Field

from ...controller.budgets import LCPO
from ..config import AlwaysThinks, Recipe, RecipeError, Section
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, Row, check_recipe
from ..rewards import Correctness, Reward, require_column
from ..rollouts import GroupRollouts
from ..sampling import FREE
from ..training_run import TrainingRun
from . import Method


class Lcpo(Section):
    """Settings."""

    least: int = Field(default=100, ge=1)  # of the limits, in tokens
    most: int = Field(default=4000, ge=1)
    alpha: float = Field(default=0.0003, gt=0)  # reward for each token below the limit
    delta: float = Field(default=0.5, ge=0, le=1)  # reward of a right answer at the limit
    kl: float = Field(default=0.0, ge=0)


class LcpoRecipe(Recipe):
    """The recipe of this method."""

    lcpo: Lcpo = Lcpo()
    alarm: AlwaysThinks = AlwaysThinks()


class LengthControl(Reward):
    """clip(alpha * (limit - tokens) + delta, 0, 1) for a right answer, else 0; columns `limit`, `completion_ids`."""

    name = "length_control"

    def __init__(self, correct: Correctness, alpha: float = 0.0003, delta: float = 0.5) -> None:
        self.correct, self.alpha, self.delta = correct, alpha, delta

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        limits = require_column(columns, "limit", self.name)
        tokens = [len(ids) for ids in require_column(columns, "completion_ids", self.name)]
        right = self.correct(prompts, completions, **columns)
        scores = [self.alpha * (limit - used) + self.delta for limit, used in zip(limits, tokens, strict=True)]
        return [float(value or 0.0) * min(1.0, max(0.0, score)) for value, score in zip(right, scores, strict=True)]


def with_limits(rows: Sequence[Row], settings: Lcpo, seed: int) -> list[Row]:
    """The rows with a limit each, which the last message states."""
    rng, limited = Random(f"lcpo:{seed}"), []
    for row in rows:
        limit = rng.randint(settings.least, settings.most)
        *before, last = row["prompt"]
        content = f"{last['content']}\n\n{LCPO.replace('{budget}', str(limit))}"
        limited.append({**row, "prompt": [*before, {**last, "content": content}], "limit": limit})
    return limited


def _validate(recipe: LcpoRecipe) -> CheckedRecipe:
    if recipe.lcpo.least > recipe.lcpo.most:
        raise RecipeError(
            f"lcpo.least is {recipe.lcpo.least}, above lcpo.most, which is {recipe.lcpo.most}; swap them",
            code="invalid_value",
        )
    return check_recipe(recipe, resident=ResidentModels(reference=bool(recipe.lcpo.kl)))


def _train(run: TrainingRun[LcpoRecipe]) -> None:
    recipe, settings = run.recipe, run.recipe.lcpo
    with Correctness(run.checked.markers.close) as correct:
        trainer = run.build_grpo_trainer(
            GroupRollouts(run.make_sampler(), [FREE] * recipe.rollouts.generations, recipe.seed),
            [correct, LengthControl(correct, settings.alpha, settings.delta)],
            credit="group",
            alarm=recipe.alarm,
            rows=with_limits(run.checked.rows, settings, recipe.seed),
            reward_weights=[0.0, 1.0],
            beta=settings.kl,
        )
        run.run_trainer(trainer)


METHOD = Method(recipe=LcpoRecipe, validate=_validate, train=_train)
