"""AdaR1 (arXiv 2504.21659): merge a model with a short-thinking copy, then learn by DPO when to think long.

Each stage is finished once, in a folder of the run: short completions are learned (`short/`), the weights merged
(`merged/`), the questions answered by both parents, and DPO learns from pairs of their completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import torch
from pydantic import Field

from ...controller.engines.transformers.engine import TransformersEngine, load_engine
from ..config import Optimizer, Recipe, RecipeError, Section, ThinkingEffort
from ..offline import (
    PreferencePair,
    SampledTrace,
    build_dpo_trainer,
    choose_shortest,
    collect_traces,
    schedule_examples,
    train_sft,
)
from ..preflight import CheckedRecipe, ResidentModels, check_recipe
from ..processes import rank0_only
from ..training_run import MODEL, TrainingRun, write_model
from . import Method


class AdaR1(Section):
    """Settings."""

    share: float = Field(default=0.8, gt=0, lt=1)  # of the long model's weights in the merged model
    samples: int = Field(default=12, ge=1)  # completions per question by each parent
    beta: float = Field(default=0.1, gt=0)  # of DPO
    groups: int = Field(default=4, ge=0)  # most pairs per question that compare long with short thinking
    instances: int = Field(default=2, ge=0)  # most pairs per question that compare completions of one kind
    min_accuracy: float = Field(default=0.0, ge=0, le=1)  # with fewer right, no brevity is taught; ours, 0 in the paper
    nll_weight: float = Field(default=0.0, ge=0)  # see `build_dpo_trainer`; ours, 0 in the paper
    short_effort: ThinkingEffort = "easy"  # the tier in which the short completions are sampled
    short: Optimizer = Optimizer()  # how the short parent learns them, under the usual prompt


class AdaR1Recipe(Recipe):
    """The recipe of this method."""

    adar1: AdaR1 = AdaR1()


def _validate(recipe: AdaR1Recipe) -> CheckedRecipe:
    return check_recipe(
        recipe,
        completions=1,
        stages={"adar1.short": recipe.adar1.short},
        resident=ResidentModels(models=2, reference=True, sequences=2),
        step_content=f"pairs, from {recipe.adar1.samples} completions for each question by each parent",
    )


def _train(run: TrainingRun[AdaR1Recipe]) -> None:
    recipe, settings, merged_folder = run.recipe, run.recipe.adar1, run.folder / "merged" / MODEL
    with closing(run.load_model()) as long, closing(_train_short_parent(run, long)) as short:
        long_traces, short_traces = (
            collect_traces(run, run.make_sampler(engine), f"{kind}-answers", settings.samples)
            for kind, engine in (("long", long), ("short", short))
        )
        rank0_only(lambda: _write_merged(run, long, short, merged_folder))
    rng = Random(f"pairs:{recipe.seed}")
    pairs = [
        pair
        for group in zip(long_traces, short_traces, strict=True)
        for pair in make_pairs(*group, rng, settings.groups, settings.instances, settings.min_accuracy)
    ]
    if not pairs:
        raise RecipeError(
            "no question gives a pair: neither parent answers any right, or too few samples are right to prefer brief "
            f"ones (adar1.min_accuracy is {settings.min_accuracy}); use easier questions",
            code="nothing_to_learn",
        )
    run.log(f"learning {len(pairs)} pairs, {sum(p.level == 'group' for p in pairs)} of long against short thinking")
    merged = load_engine(merged_folder, recipe.optimizer.dtype)
    trainer = build_dpo_trainer(
        run,
        merged.model,
        merged.tokenizer,
        schedule_examples([pair.to_example() for pair in pairs], recipe),
        beta=settings.beta,
        nll_weight=settings.nll_weight,
    )
    run.run_trainer(trainer)


def _train_short_parent(run: TrainingRun[AdaR1Recipe], long: TransformersEngine) -> TransformersEngine:
    """The model after learning its own short right completions."""
    settings, folder = run.recipe.adar1, run.folder / "short" / MODEL
    if not rank0_only(folder.is_dir):
        sampled = collect_traces(run, run.make_sampler(long), "short-traces", 1, settings.short_effort)
        kept = choose_shortest(sampled, 1)
        run.log(f"the short parent learns {len(kept)} completions")
        with closing(run.load_model()) as student:
            train_sft(run.make_stage("short", settings.short), student, kept)
    return load_engine(folder, run.recipe.optimizer.dtype)


def _write_merged(
    run: TrainingRun[AdaR1Recipe], long: TransformersEngine, short: TransformersEngine, folder: Path
) -> None:
    """Write the merged model, from which DPO also loads its reference; overwrites the weights of `long`."""
    if folder.is_dir():
        return
    share, others = run.recipe.adar1.share, dict(short.model.named_parameters())  # lists tied weights once
    with torch.no_grad():
        for name, weight in long.model.named_parameters():
            weight.copy_(share * weight.float() + (1 - share) * others[name].float())
    write_model(long.model, long.tokenizer, folder)
    run.log(f"merged {share:.0%} of the long model with the short one")


def make_pairs(
    long: Sequence[SampledTrace],
    short: Sequence[SampledTrace],
    rng: Random,
    groups: int = 4,
    instances: int = 2,
    min_accuracy: float = 0.0,
) -> list[PreferencePair]:
    """The preference pairs of one question, from as many long as short completions.

    Long thinking is preferred only if its accuracy is higher by more than half a sample; then a right completion of the
    preferred kind is chosen over a wrong one of the other kind, if any is wrong. Within the preferred kind, the
    shortest right completion is chosen over the longest right ones. No pairs are made if neither kind is ever right,
    and none for brevity if less than `min_accuracy` of the preferred kind is right: a question that is not learned yet
    must not be learned short. As in the authors' script, but that `min_accuracy` is ours, and that a completion is
    never compared with itself.
    """
    right_long, right_short = sum(t.right for t in long), sum(t.right for t in short)
    if not right_long and not right_short:
        return []
    margin = 1 / (2 * len(long))
    better, worse = (long, short) if right_long / len(long) - right_short / len(short) > margin else (short, long)
    solved = sum(t.right for t in better) >= min_accuracy * len(better)
    if better is short and not solved:
        return []
    good, bad = [t for t in better if t.right and t.finished], [t for t in worse if not t.right] or list(worse)
    candidates = [(chosen, rejected) for chosen in good for rejected in bad]
    pairs = [PreferencePair("group", *both) for both in rng.sample(candidates, min(groups, len(candidates)))]
    if good and solved:
        winner = min(good, key=lambda t: t.length)
        losers = sorted((t for t in good if t.length > winner.length), key=lambda t: -t.length)[:instances]
        pairs += [PreferencePair("instance", winner, loser) for loser in losers]
    return pairs


METHOD = Method(recipe=AdaR1Recipe, validate=_validate, train=_train)
