"""Vector rewards (MAH-DPO of Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards).

A head for each objective on one trunk, taught by DPO on pairs of one's own completions that differ in it: right before
wrong, brief before long among the right ones, ended with an answer before broken off. How much each objective counts is
chosen afterwards: `tersely train blend MODEL OUT --weight accuracy=1 --weight brevity=2`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

from pydantic import Field, field_validator

from ..config import Recipe, RecipeError, Section
from ..memory import ResidentModels
from ..pairs import objective_pairs
from ..preflight import CheckedRecipe, check
from ..rewards import Correctness
from ..sampling import Sampler
from ..traces import collect
from ..training_run import TrainingRun
from .heads import close_heads, put_heads

Objective = Literal["accuracy", "brevity", "format"]


class MahDpo(Section):
    """samples: of each question. pairs: most of a question and objective. beta: of DPO.

    gap: the share by which a long completion has to be longer than the brief one that is preferred to it. least: the
    share of right answers below which a question teaches no brevity; ours, 0 takes all questions. likelihood:
    how much the mean loss of chosen tokens counts beside that of DPO, much as in arXiv 2404.19733; DPO by itself makes
    them less likely as well, only not as much as the rejected ones. frozen: heads alone learn, on the model as it is;
    the paper has the trunk that they share learn from all objectives, which then pull it different ways.
    """

    objectives: tuple[Objective, ...] = Field(default=("accuracy", "brevity", "format"), min_length=2)
    samples: int = Field(default=8, ge=2)
    pairs: int = Field(default=4, ge=1)
    beta: float = Field(default=0.1, gt=0)
    gap: float = Field(default=0.2, ge=0)
    least: float = Field(default=0.5, ge=0, le=1)
    likelihood: float = Field(default=0.0, ge=0)
    frozen: bool = False

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, given: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(set(given)) < len(given):
            raise ValueError("an objective is named twice")
        return given


class MahDpoRecipe(Recipe):
    """The recipe of this method."""

    mahdpo: MahDpo = MahDpo()


def validate_recipe(recipe: MahDpoRecipe) -> CheckedRecipe:
    """See `checks.check`; raises RecipeError."""
    if recipe.optimiser.lora is not None:
        raise RecipeError("optimiser.lora trains adapters, and heads are whole matrices; leave it out")
    own = recipe.mahdpo
    trained: Literal["heads", "model"] = "heads" if own.frozen else "model"
    held = ResidentModels(reference=True, texts=2, heads=len(own.objectives), trained=trained)
    learns = f"pairs of one objective each, from {own.samples} completions for each question"
    return check(recipe, completions=1, held=held, learns=learns)


def run(recipe: MahDpoRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Sample, pair, and teach each head its pairs; or go on with that."""
    from ..offline import train_mo_dpo

    own, engine = recipe.mahdpo, running.load(recipe)
    with Correctness(ground.markers.close) as correct:
        answers = collect(
            Sampler(engine, recipe.rollouts, ground.markers),
            ground.rows,
            own.samples,
            recipe.out / "answers.jsonl",
            seed=recipe.seed,
            correct=correct,
            say=say,
        )
    rng = Random(f"objectives:{recipe.seed}")
    made = {
        name: [p for traces in answers for p in objective_pairs(name, traces, rng, own.pairs, own.gap, own.least)]
        for name in own.objectives
    }
    if missing := [name for name, pairs in made.items() if not pairs]:
        raise RecipeError(
            f"no two completions of a question differ in {' or '.join(missing)}; sample more of them, choose other "
            "questions or a lower rollouts.max_new_tokens, or leave that out of mahdpo.objectives"
        )
    say("learns from " + ", ".join(f"{len(pairs)} pairs of {name}" for name, pairs in made.items()))
    if own.frozen:
        engine.model.requires_grad_(False)
    heads = put_heads(engine.model, own.objectives)
    train_mo_dpo(
        running,
        recipe,
        engine.model,
        engine.tokenizer,
        list(made.values()),
        heads,
        own.beta,
        own.likelihood,
        finish=lambda model, folder: close_heads(model, heads, folder),
    )


RECIPE = MahDpoRecipe
