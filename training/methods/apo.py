"""Adaptive policy optimisation (APO of A2FM, arXiv 2510.12838): answering at once, thinking, or working with tools.

GRPO on groups in which each mode is tried by force and the rest is free. What was forced gets no loss; the choice is
learnt from the free ones, by a reward that discounts dearer modes where answering at once would do. Tools there are for
tasks of agents, in worlds that are made up. Before that, the model may learn which mode does (`aligning`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field, model_validator

from ...controller.engines.transformers.engine import TransformersEngine
from ...errors import OptionError
from ...evaluation.agents.tools import TOOL_SCHEMAS
from ..config import Alarm, Recipe, RecipeError, Section
from ..data import Row, schedule
from ..environment import Environment, load_environment, load_tasks
from ..episodes import EpisodeRollouts, TrainingEpisode, run_episode
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, check, check_effort
from ..research.mode_alignment import Align, Alignment
from ..rewards import AdaptiveDiscount, Correctness
from ..rewards.base import AGENTIC, NO_THINK, THINK
from ..sampling import FREE, CompletionRequest, Sampler
from ..training_run import TrainingRun


class Apo(Section):
    """forced: completions of a group forced into each mode; the rest is free. alpha, easy: see `AdaptiveDiscount`.

    no_think_tokens: most of one that is begun without thinking, None for as many as all. steps: most of an episode with
    tools; later: the effort of those that follow a tool's result. align: learn first which mode does for a question.
    """

    forced: int = Field(default=3, ge=1)
    alpha: float = Field(default=2.0, gt=0)
    easy: float = Field(default=0.5, ge=0, le=1)
    kl: float = Field(default=0.0, ge=0)
    no_think_tokens: int | None = Field(default=None, ge=2)
    steps: int = Field(default=8, ge=2)
    later: str = "easy"
    align: Align | None = None


class ApoRecipe(Recipe):
    """The recipe of this method."""

    apo: Apo = Apo()
    alarm: Alarm = Alarm()

    @property
    def modes(self) -> tuple[str, ...]:
        """From the cheapest to the dearest."""
        return (NO_THINK, THINK) if load_tasks(self.data) is None else (NO_THINK, THINK, AGENTIC)

    @model_validator(mode="after")
    def _leaves_some_free(self) -> ApoRecipe:
        if len(self.modes) * self.apo.forced >= self.rollouts.generations:
            raise OptionError(
                f"apo.forced is {self.apo.forced} for each of {len(self.modes)} modes and a group has "
                f"{self.rollouts.generations} completions, which leaves none free to learn the choice from; raise "
                "rollouts.generations"
            )
        return self


def validate_recipe(recipe: ApoRecipe) -> CheckedRecipe:
    """See `checks.check`; raises RecipeError."""
    check_effort("apo.later", recipe.apo.later)
    if recipe.apo.kl and load_tasks(recipe.data) is not None:
        raise RecipeError("apo.kl is not weighed by the steps of an episode; leave it out for tasks with tools")
    stages = {} if recipe.apo.align is None else {"apo.align.optimiser": recipe.apo.align.optimiser}
    return check(
        recipe,
        no_think_tokens=recipe.apo.no_think_tokens,
        tools=True,
        stages=stages,
        held=ResidentModels(reference=bool(recipe.apo.kl)),
    )


def run(recipe: ApoRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Train, or go on training."""
    own, size = recipe.apo, recipe.rollouts.generations
    environment = load_environment(recipe.data)
    forced = [mode for mode in recipe.modes for _ in range(own.forced)]
    plan = forced + [FREE] * (size - len(forced))
    with Correctness(ground.markers.close) as correct:
        sampler = _sampler(recipe, ground, running.load(recipe), environment)
        if own.align is not None:
            _align(recipe, own.align, ground, sampler, environment, correct, say)
        running.reinforce(
            recipe,
            sampler,
            EpisodeRollouts(sampler, plan, recipe.seed, environment, later=own.later, steps=own.steps),
            [correct, AdaptiveDiscount(correct, own.alpha, own.easy, ground.markers.close)],
            schedule(ground.rows, recipe.optimiser.steps, recipe.rollouts.prompts, recipe.seed),
            credit="group",
            alarm=recipe.alarm,
            # Correctness is in the discounted reward already; it is there to be seen.
            options={"reward_weights": [0.0, 1.0], "beta": own.kl},
        )


def _sampler(
    recipe: ApoRecipe, ground: CheckedRecipe, engine: TransformersEngine, environment: Environment | None
) -> Sampler:
    return Sampler(
        engine,
        recipe.rollouts,
        ground.markers,
        no_think_tokens=recipe.apo.no_think_tokens,
        tools=() if environment is None else TOOL_SCHEMAS,
    )


def _align(
    recipe: ApoRecipe,
    stage: Align,
    ground: CheckedRecipe,
    sampler: Sampler,
    environment: Environment | None,
    correct: Correctness,
    say: Callable[[str], None],
) -> None:
    """See `aligning.Alignment`."""

    def played(asks: Sequence[CompletionRequest], rows: Sequence[Row], seed: int) -> list[TrainingEpisode]:
        return run_episode(sampler, asks, rows, environment, later=recipe.apo.later, steps=recipe.apo.steps, seed=seed)

    def right(episode: TrainingEpisode) -> bool:
        row: Any = episode.row
        if environment is not None:
            return environment.solved(row["id"], episode.answer)
        return correct.is_right(row["answer"], episode.answer, row["drawn"])

    Alignment(recipe, stage, recipe.modes, sampler, ground.rows, played, right, say).run()


RECIPE = ApoRecipe
