"""Supervised fine-tuning on one's own completions: the shortest right ones, or those that a controller shortened.

Self-distillation bakes in what costs several samples, or a controller at run time: its ends of the thinking are learnt,
and completions are learnt without the hints that made them short.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from pydantic import Field

from ..config import Recipe, RecipeError, Section
from ..preflight import CheckedRecipe, check, check_effort
from ..rewards import Correctness
from ..sampling import Sampler
from ..traces import collect, shortest_right, to_sft
from ..training_run import TrainingRun


class Sft(Section):
    """samples: of each question, of which the `keep` shortest right ones are learnt. effort: the tier they are sampled
    in, None for the one they are learnt for. Policies of `rollouts` make them a controller's traces; imitate: see
    `traces.to_sft`; with False what a controller wrote is read and not learnt, and the model waits for it."""

    samples: int = Field(default=8, ge=1)
    keep: int = Field(default=1, ge=1)
    effort: str | None = None
    imitate: bool = True


class SftRecipe(Recipe):
    """The recipe of this method."""

    sft: Sft = Sft()


def validate_recipe(recipe: SftRecipe) -> CheckedRecipe:
    """See `checks.check`."""
    own = recipe.sft
    check_effort("sft.effort", own.effort)
    learns = f"completions, for each question the {own.keep} shortest right of {own.samples}"
    return check(recipe, completions=1, learns=learns)


def run(recipe: SftRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Sample, keep the shortest right ones, and train on them; or go on with that."""
    from ..offline import train_sft

    engine, own = running.load(recipe), recipe.sft
    sampler = Sampler(engine, recipe.rollouts, ground.markers)
    with Correctness(ground.markers.close) as correct:
        found = collect(
            sampler,
            ground.rows,
            own.samples,
            recipe.out / "traces.jsonl",
            seed=recipe.seed,
            correct=correct,
            effort=own.effort,
            say=say,
        )
    made = [[to_sft(trace, sampler.close) if own.imitate else trace for trace in traces] for traces in found]
    kept = [trace for traces in made for trace in shortest_right(traces, own.keep)]
    if not kept:
        raise RecipeError(
            f"none of {own.samples} completions of {len(found)} questions is right and ended by the model; ask easier "
            "questions, or raise rollouts.max_new_tokens"
        )
    before = fmean(trace.length for traces in found for trace in traces)
    after = fmean(trace.length for trace in kept)
    say(f"learns {len(kept)} completions of {after:.0f} tokens on average; those sampled had {before:.0f}")
    train_sft(running, recipe, engine.model, engine.tokenizer, kept)


RECIPE = SftRecipe
