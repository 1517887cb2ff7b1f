"""Adaptive policy optimisation (APO of A2FM, arXiv 2510.12838) with two modes, thinking and answering at once.

GRPO on groups in which each mode is tried by force and the rest is free. What was forced gets no loss; the choice is
learnt from the free ones, by a reward that discounts thinking where answering at once would do.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, model_validator

from ...errors import OptionError
from ..checks import Ground, check
from ..config import Alarm, Recipe, Section
from ..data import schedule
from ..rewards import AdaptiveDiscount, Correctness
from ..rewards.base import NO_THINK, THINK
from ..rollouts import GroupRollouts
from ..running import Running
from ..sampling import FREE, Sampler


class Apo(Section):
    """forced: completions of a group forced into each mode; the rest is free. alpha, easy: see `AdaptiveDiscount`."""

    forced: int = Field(default=3, ge=1)
    alpha: float = Field(default=2.0, gt=0)
    easy: float = Field(default=0.5, ge=0, le=1)
    kl: float = Field(default=0.0, ge=0)


class Kind(Recipe):
    """The recipe of this method."""

    apo: Apo = Apo()
    alarm: Alarm = Alarm()

    @model_validator(mode="after")
    def _leaves_some_free(self) -> Kind:
        if 2 * self.apo.forced >= self.rollouts.generations:
            raise OptionError(
                f"apo.forced is {self.apo.forced} for each of two modes and a group has {self.rollouts.generations} "
                "completions, which leaves none free to learn the choice from; raise rollouts.generations"
            )
        return self


def look(recipe: Kind) -> Ground:
    """See `checks.check`."""
    return check(recipe)


def run(recipe: Kind, ground: Ground, running: Running, say: Callable[[str], None]) -> None:
    """Train, or go on training."""
    own, size = recipe.apo, recipe.rollouts.generations
    sampler = Sampler(running.load(recipe), recipe.rollouts, ground.markers)
    plan = [NO_THINK] * own.forced + [THINK] * own.forced + [FREE] * (size - 2 * own.forced)
    with Correctness(ground.markers.close) as correct:
        running.reinforce(
            recipe,
            sampler,
            GroupRollouts(sampler, plan, recipe.seed, learn_first=False),
            [correct, AdaptiveDiscount(correct, own.alpha, own.easy, ground.markers.close)],
            schedule(ground.rows, recipe.optimiser.steps, recipe.rollouts.prompts, recipe.seed),
            credit="group",
            alarm=recipe.alarm,
            # Correctness is in the discounted reward already; it is there to be seen.
            options={"reward_weights": [0.0, 1.0], "beta": own.kl},
        )
