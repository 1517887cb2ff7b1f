"""Learn an adapter with which easy thinking tokens leave the model early (a depth shortcut, after System-1.5).

System-1.5 Reasoning (arXiv 2505.18962) trains the model to skip layers; here it stays frozen. An adapter learns its
distributions after one layer, a gate where the two agree, and held-out questions give the threshold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace

from pydantic import Field

from ...controller.engines.transformers.research.early_exit import FAMILIES
from ...probes.artifact import save
from ...probes.fingerprint import question_hash
from ...probes.research.shortcut import KIND, Shortcut
from ..config import Recipe, RecipeError, Section
from ..memory import ResidentModels
from ..methods import Method
from ..preflight import CheckedRecipe, check_frozen, check_recipe, load_meta_engine
from ..processes import rank0_only
from ..sampling import RolloutSampler
from ..traces import SampledTrace, collect_traces
from ..training_run import TrainingRun


class ShortcutSettings(Section):
    """Settings."""

    layer: int = Field(ge=1)  # the layer after which tokens leave; the first is 1
    samples: int = Field(default=1, ge=1)  # completions per question, right or wrong
    held_out: float = Field(default=0.25, gt=0, lt=1)  # the share of questions for choosing the threshold
    agreement: float = Field(default=0.999, gt=0.5, le=1)  # of most likely tokens, for all that leave or stay
    width: int | None = Field(default=None, ge=1)  # of the adapter; by default the model's
    gate: int = Field(default=64, ge=1)  # width of the gate
    tokens: int = Field(default=512, ge=1)  # per optimizer step


class ShortcutRecipe(Recipe):
    """The recipe of this method."""

    shortcut: ShortcutSettings


def _validate(recipe: ShortcutRecipe) -> CheckedRecipe:
    check_frozen(recipe)
    config = load_meta_engine(recipe.model).model.config.get_text_config(decoder=True)
    if config.model_type not in FAMILIES:
        raise RecipeError(
            f"{recipe.model} is a {config.model_type!r} model, which does not support early exits; accepted: "
            f"{', '.join(FAMILIES)}",
            code="unsupported_model",
        )
    if recipe.shortcut.layer >= config.num_hidden_layers:
        raise RecipeError(
            f"shortcut.layer is {recipe.shortcut.layer}, but {recipe.model} has {config.num_hidden_layers} layers; "
            f"accepted: 1 to {config.num_hidden_layers - 1}",
            code="layer_out_of_range",
        )
    checked = check_recipe(recipe, completions=1, resident=ResidentModels(trained="nothing"))
    if not 0 < round(recipe.shortcut.held_out * len(checked.rows)) < len(checked.rows):
        raise RecipeError(
            f"shortcut.held_out is {recipe.shortcut.held_out:g} of {len(checked.rows)} questions, which leaves one "
            "part empty; use more questions (data.questions)",
            code="too_few_questions",
        )
    steps = f"steps: {recipe.optimiser.steps} of {recipe.shortcut.tokens} thinking tokens each"
    return replace(checked, findings=[steps if line.startswith("steps:") else line for line in checked.findings])


def _train(run: TrainingRun[ShortcutRecipe]) -> None:
    """See `Method.train`. A resumed run keeps its completions; training itself takes minutes and starts again."""
    sampler = run.make_sampler()
    sampled = collect_traces(run, sampler, "traces", run.recipe.shortcut.samples)
    rank0_only(lambda: _train_shortcut(run, sampler, sampled))
    run.log(f"wrote {run.folder / KIND}; use it with `tersely run --policy shortcut --probes {run.folder}`")


def _train_shortcut(
    run: TrainingRun[ShortcutRecipe], sampler: RolloutSampler, sampled: Sequence[Sequence[SampledTrace]]
) -> None:
    from .early_exit_training import choose_threshold, collect_states, train_adapter

    recipe, settings, engine, close = run.recipe, run.recipe.shortcut, sampler.engine, sampler.close
    model = engine.model
    fit, held_out = split_questions(sampled, settings.held_out, recipe.seed)
    states = collect_states(model, fit, settings.layer, close)
    if not len(states.early):
        raise RecipeError(
            "no completion has a thinking token to learn from; use a model that thinks", code="nothing_to_learn"
        )
    run.log(f"learning {len(states.early)} thinking tokens after layer {settings.layer}")
    arrays = train_adapter(
        model,
        states,
        recipe.optimiser,
        width=settings.width or states.early.shape[1],
        gate=settings.gate,
        tokens=settings.tokens,
        seed=recipe.seed,
        log=run.log,
    )
    chosen = choose_threshold(model, arrays, held_out, settings.layer, close, settings.agreement)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    shortcut = Shortcut(
        layer=settings.layer,
        layers=layers,
        arrays={name: array.cpu().numpy() for name, array in arrays.items()},
        base={"name": recipe.model, "fingerprint": engine.fingerprint()},
        threshold=chosen.threshold,
        provenance={
            "recipe": recipe.model_dump(mode="json", exclude={"out", "saving"}),
            "learned_from": sorted({question_hash(row["prompt"][-1]["content"]) for row in run.checked.rows}),
        },
        metrics=asdict(chosen),
    )
    save(shortcut, run.folder / KIND)
    if chosen.threshold is None:
        run.log(f"no threshold reaches an agreement of {settings.agreement:.2%}; train longer, or use a later layer")
    else:
        run.log(
            f"{chosen.left:.1%} of {chosen.tokens} held-out tokens leave after layer {settings.layer} of {layers}; "
            f"{chosen.agreement_left:.2%} of them agree, and {chosen.agreement_stayed:.2%} of those that stay"
        )


def split_questions(
    sampled: Sequence[Sequence[SampledTrace]], held_out: float, seed: int
) -> tuple[list[SampledTrace], list[SampledTrace]]:
    """The completions to learn from, and those of held-out questions."""
    order = list(range(len(sampled)))
    random.Random(f"held out:{seed}").shuffle(order)
    count = round(held_out * len(order))
    return [trace for i in order[count:] for trace in sampled[i]], [t for i in order[:count] for t in sampled[i]]


METHOD = Method(recipe=ShortcutRecipe, validate=_validate, train=_train, results=(KIND,))
