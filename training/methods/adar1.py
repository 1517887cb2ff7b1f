"""AdaR1 (arXiv 2504.21659): merge a model with its short-thinking sister, and teach it by DPO when to think.

Stages, each kept in its own place and done once: short completions are learnt (`short/`), the weights are mixed
(`merged/`), both parents answer the questions, and pairs of their completions are what DPO learns from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from ...controller.engines.transformers.engine import TransformersEngine, load_engine
from ..config import Optimiser, Recipe, RecipeError, Section
from ..memory import ResidentModels
from ..pairs import make_pairs
from ..preflight import CheckedRecipe, check, check_effort
from ..processes import rank0_only
from ..rewards import Correctness
from ..sampling import Sampler
from ..saving import MODEL, write_model
from ..traces import SampledTrace, collect, shortest_right
from ..training_run import TrainingRun


class AdaR1(Section):
    """share: of the long model's weights in the merged one. samples: of each parent and question. beta: of DPO.

    groups, instances: most pairs of a question at each level. least: the share of right answers below which a question
    teaches no brevity. likelihood: of the loss of chosen completions, beside that of DPO, by which they become less
    likely, too. Both are ours, 0 the paper's. short_effort: the tier in which short completions are sampled, for
    the short parent to learn them under the usual prompt; short: how it learns them.
    """

    share: float = Field(default=0.8, gt=0, lt=1)
    samples: int = Field(default=12, ge=1)
    beta: float = Field(default=0.1, gt=0)
    groups: int = Field(default=4, ge=0)
    instances: int = Field(default=2, ge=0)
    least: float = Field(default=0.5, ge=0, le=1)
    likelihood: float = Field(default=0.0, ge=0)
    short_effort: str = "easy"
    short: Optimiser = Optimiser()


class AdaR1Recipe(Recipe):
    """The recipe of this method."""

    adar1: AdaR1 = AdaR1()


def validate_recipe(recipe: AdaR1Recipe) -> CheckedRecipe:
    """See `checks.check`."""
    check_effort("adar1.short_effort", recipe.adar1.short_effort)
    return check(
        recipe,
        completions=1,
        stages={"adar1.short": recipe.adar1.short},
        held=ResidentModels(models=2, reference=True, texts=2),
        learns=f"pairs, from {recipe.adar1.samples} completions for each question by each parent",
    )


def run(recipe: AdaR1Recipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Go through the stages, from the first that is not done."""
    from ..offline import train_dpo

    own, out = recipe.adar1, recipe.out
    with (
        Correctness(ground.markers.close) as correct,
        closing(running.load(recipe)) as long,
        closing(_short(recipe, ground, long, correct, running, say)) as short,
    ):
        answers = [
            collect(
                Sampler(engine, recipe.rollouts, ground.markers),
                ground.rows,
                own.samples,
                out / f"{name}.jsonl",
                seed=recipe.seed,
                correct=correct,
                say=say,
            )
            for name, engine in (("long-answers", long), ("short-answers", short))
        ]
        rank0_only(lambda: _mix(recipe, long, short, out / "merged" / MODEL, say))
    rng = Random(f"pairs:{recipe.seed}")
    pairs = [
        pair
        for a, b in zip(*answers, strict=True)
        for pair in make_pairs(a, b, rng, own.groups, own.instances, own.least)
    ]
    if not pairs:
        raise RecipeError(
            "no question gives a pair: neither parent answers one right, or too few of their samples are right to "
            f"prefer brief ones (adar1.least is {own.least}); ask easier questions"
        )
    say(f"prefers by {len(pairs)} pairs, {sum(p.level == 'group' for p in pairs)} of them about the kind of thinking")
    merged = load_engine(out / "merged" / MODEL, recipe.optimiser.dtype)
    train_dpo(running, recipe, merged.model, merged.tokenizer, pairs, own.beta, own.likelihood)


def _short(
    recipe: AdaR1Recipe,
    ground: CheckedRecipe,
    long: TransformersEngine,
    correct: Correctness,
    running: TrainingRun,
    say: Callable[[str], None],
) -> TransformersEngine:
    """The parent that thinks briefly: the model after learning its own short right completions."""
    from ..offline import train_sft

    folder = recipe.out / "short"
    if not rank0_only((folder / MODEL).is_dir):
        sampler = Sampler(long, recipe.rollouts, ground.markers)
        found = collect(
            sampler,
            ground.rows,
            1,
            recipe.out / "short-traces.jsonl",
            seed=recipe.seed,
            correct=correct,
            effort=recipe.adar1.short_effort,
            say=say,
        )
        kept: list[SampledTrace] = [trace for traces in found for trace in shortest_right(traces, 1)]
        if not kept:
            raise RecipeError(f"no short completion of {len(found)} questions is right; ask easier questions")
        say(f"the short parent learns {len(kept)} completions")
        settings = recipe.model_copy(update={"optimiser": recipe.adar1.short})
        with closing(running.load(recipe)) as student:
            train_sft(TrainingRun.stage(folder, say), settings, student.model, student.tokenizer, kept)
    return load_engine(folder / MODEL, recipe.optimiser.dtype)


def _mix(
    recipe: AdaR1Recipe, long: TransformersEngine, short: TransformersEngine, folder: Path, say: Callable[[str], None]
) -> None:
    """Write the mixture of both parents, which the DPO trainer can load its reference from; `long` is used up."""
    if not folder.is_dir():
        merge(long.model, short.model, recipe.adar1.share)
        write_model(long.model, long.tokenizer, folder)
        say(f"merged {recipe.adar1.share:.0%} of the long model with its short sister")


def merge(long: Any, short: Any, share: float) -> None:
    """Mix the weights of a model into another's, `share` of which stays; in place, since both may be large."""
    import torch

    others = dict(short.named_parameters())  # tied weights once
    with torch.no_grad():
        for name, weight in long.named_parameters():
            weight.copy_(share * weight.float() + (1 - share) * others[name].float())


RECIPE = AdaR1Recipe
