"""Supervised fine-tuning on the model's own completions: the shortest right ones, or those a controller shortened.

The controller's closings of the thinking are learned, and its hints removed from the completions they made short.
"""

from __future__ import annotations

from statistics import fmean

from pydantic import Field

from ..config import Recipe, RecipeError, Section, ThinkingEffort
from ..preflight import CheckedRecipe, check_recipe
from ..traces import collect_traces, shortest_right, to_sft
from ..training_run import TrainingRun
from . import Method


class Sft(Section):
    """Settings. With `rollouts.policies`, the completions are those of a controller."""

    samples: int = Field(default=8, ge=1)  # per question; the `keep` shortest right ones are learned
    keep: int = Field(default=1, ge=1)
    effort: ThinkingEffort | None = None  # the tier to sample in; by default the tier that is trained
    # learn what the controller did, see `traces.to_sft`. If False, its text is only masked from the loss, and the model
    # learns to wait for the controller.
    imitate: bool = True


class SftRecipe(Recipe):
    """The recipe of this method."""

    sft: Sft = Sft()


def _validate(recipe: SftRecipe) -> CheckedRecipe:
    settings = recipe.sft
    content = f"completions, the {settings.keep} shortest right of {settings.samples} for each question"
    return check_recipe(recipe, completions=1, step_content=content)


def _train(run: TrainingRun[SftRecipe]) -> None:
    from ..offline import train_sft

    sampler, settings = run.make_sampler(), run.recipe.sft
    sampled = collect_traces(run, sampler, "traces", settings.samples, settings.effort)
    traces = [[to_sft(t, sampler.close) if settings.imitate else t for t in group] for group in sampled]
    kept = [trace for group in traces for trace in shortest_right(group, settings.keep)]
    if not kept:
        raise RecipeError(
            f"none of {settings.samples} completions of {len(sampled)} questions is right and was ended by the model; "
            "use easier questions, or raise rollouts.max_new_tokens",
            code="nothing_to_learn",
        )
    before = fmean(trace.length for group in sampled for trace in group)
    after = fmean(trace.length for trace in kept)
    run.log(f"learning {len(kept)} completions of {after:.0f} tokens on average; all sampled ones have {before:.0f}")
    train_sft(run, sampler.engine, kept)


METHOD = Method(recipe=SftRecipe, validate=_validate, train=_train)
