"""A depth shortcut, after System-1.5 Reasoning (arXiv 2505.18962): easy tokens of the thinking leave the model early.

The paper trains the model to skip layers; here it stays frozen. An adapter after one layer learns the model's own
distributions at the thinking tokens of its own completions, a gate learns where the two agree, and the threshold is the
lowest at which they do on questions that nothing was learnt from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import Field

from ...controller.engines.transformers.engine import TransformersEngine
from ...controller.engines.transformers.research.early_exit import FAMILIES
from ...probes.fingerprint import question_hash
from ...probes.research.shortcut import KIND, Shortcut, save_shortcut
from ..config import Recipe, RecipeError, Section
from ..data import Row
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, check, meta_engine
from ..processes import rank0_only
from ..rewards import Correctness
from ..sampling import Sampler
from ..traces import SampledTrace, collect
from ..training_run import TrainingRun


class ShortcutSettings(Section):
    """layer: after which tokens leave, 1 the first. samples: completions of each question, right or wrong.

    held_out: the share of questions that the threshold is chosen on. agreement: the least share of likeliest tokens
    that must be the model's, of those that leave and of those that stay. width, gate: of the adapter and of the gate;
    None takes the model's own for the adapter. tokens: of a step of the optimiser.
    """

    layer: int = Field(ge=1)
    samples: int = Field(default=1, ge=1)
    held_out: float = Field(default=0.25, gt=0, lt=1)
    agreement: float = Field(default=0.999, gt=0.5, le=1)
    width: int | None = Field(default=None, ge=1)
    gate: int = Field(default=64, ge=1)
    tokens: int = Field(default=512, ge=1)


class ShortcutRecipe(Recipe):
    """The recipe of this method."""

    shortcut: ShortcutSettings


def validate_recipe(recipe: ShortcutRecipe) -> CheckedRecipe:
    """See `checks.check`; raises RecipeError for a model or a layer that nothing can leave after."""
    if recipe.optimiser.lora is not None:
        raise RecipeError("optimiser.lora trains weights, and a shortcut leaves them alone; leave it out")
    if recipe.optimiser.weight_decay:
        raise RecipeError("optimiser.weight_decay is of no use to a shortcut this small; accepted: 0")
    config = meta_engine(recipe.model).model.config.get_text_config(decoder=True)
    if config.model_type not in FAMILIES:
        raise RecipeError(
            f"tokens of a {config.model_type!r} model ({recipe.model}) cannot leave early; accepted: "
            f"{', '.join(FAMILIES)}"
        )
    if recipe.shortcut.layer >= config.num_hidden_layers:
        raise RecipeError(
            f"shortcut.layer is {recipe.shortcut.layer} and {recipe.model} has {config.num_hidden_layers} layers; "
            f"accepted: 1 to {config.num_hidden_layers - 1}"
        )
    ground = check(recipe, completions=1, held=ResidentModels(trained="nothing"))
    if not 0 < round(recipe.shortcut.held_out * len(ground.rows)) < len(ground.rows):
        raise RecipeError(
            f"shortcut.held_out is {recipe.shortcut.held_out:g} of {len(ground.rows)} questions, which leaves one part "
            "empty; ask more questions (data.questions)"
        )
    steps = f"steps: {recipe.optimiser.steps} of {recipe.shortcut.tokens} thinking tokens each"
    return replace(ground, findings=[steps if line.startswith("steps:") else line for line in ground.findings])


def run(recipe: ShortcutRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Sample, learn adapter and gate, choose the threshold, and write `shortcut` into the folder.

    Completions are kept, so going on samples none twice; the rest takes minutes and begins anew.
    """
    engine, own = running.load(recipe), recipe.shortcut
    sampler = Sampler(engine, recipe.rollouts, ground.markers)
    with Correctness(ground.markers.close) as correct:
        found = collect(
            sampler, ground.rows, own.samples, recipe.out / "traces.jsonl", seed=recipe.seed, correct=correct, say=say
        )
    rank0_only(lambda: _learn(recipe, ground, engine, sampler, found, say))
    say(f"wrote {recipe.out / KIND}; use it with `tersely run --policy shortcut --probes {recipe.out}`")


def _learn(
    recipe: ShortcutRecipe,
    ground: CheckedRecipe,
    engine: TransformersEngine,
    sampler: Sampler,
    found: Sequence[Sequence[SampledTrace]],
    say: Callable[[str], None],
) -> None:
    """Learn from completions, and write what was learnt."""
    from .early_exit_training import choose, learn, read

    own = recipe.shortcut
    fit, held = divided(found, own.held_out, recipe.seed)
    readings = read(engine.model, fit, own.layer, sampler.close)
    if not len(readings.early):
        raise RecipeError("no completion has a token of thinking to learn from; train from a model that thinks")
    say(f"learns from {len(readings.early)} thinking tokens after layer {own.layer}")
    parts = learn(
        engine.model,
        readings,
        width=own.width or readings.early.shape[1],
        gate=own.gate,
        steps=recipe.optimiser.steps,
        tokens=own.tokens,
        rate=recipe.optimiser.learning_rate,
        warmup=recipe.optimiser.warmup,
        clip=recipe.optimiser.clip_gradients,
        seed=recipe.seed,
        say=say,
    )
    chosen = choose(engine.model, parts, held, own.layer, sampler.close, own.agreement)
    layers = engine.model.config.get_text_config(decoder=True).num_hidden_layers
    shortcut = Shortcut(
        layer=own.layer,
        layers=layers,
        arrays={name: part.cpu().numpy() for name, part in parts.items()},
        base={"name": recipe.model, "fingerprint": engine.fingerprint()},
        threshold=chosen.threshold,
        provenance=provenance(recipe, ground.rows),
        metrics=asdict(chosen),
    )
    save_shortcut(shortcut, recipe.out / KIND)
    if chosen.threshold is None:
        say(f"no threshold has {own.agreement:.2%} of tokens agree; train longer, or leave after a later layer")
    else:
        say(
            f"of {chosen.tokens} tokens held out {chosen.left:.1%} leave after layer {own.layer} of {layers}; "
            f"{chosen.agreement_left:.2%} of them agree, and {chosen.agreement_stayed:.2%} of those that stay"
        )


def divided(
    found: Sequence[Sequence[SampledTrace]], held_out: float, seed: int
) -> tuple[list[SampledTrace], list[SampledTrace]]:
    """The completions to learn from, and those held out, by question."""
    order = list(range(len(found)))
    random.Random(f"held out:{seed}").shuffle(order)
    count = round(held_out * len(order))
    held, fit = order[:count], order[count:]
    return [trace for i in fit for trace in found[i]], [trace for i in held for trace in found[i]]


def provenance(recipe: ShortcutRecipe, rows: Sequence[Row]) -> dict[str, Any]:
    """What a shortcut was made from."""
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"out", "saving"}),
        "learned_from": sorted({question_hash(row["prompt"][-1]["content"]) for row in rows}),
    }


RECIPE = ShortcutRecipe
