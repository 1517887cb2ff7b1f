"""Learn a head for each objective by DPO, to be weighted at inference (MAH-DPO).

From the paper Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards: pairs of the model's
own completions differ in one objective: right over wrong, brief over long, finished over cut off. Their weights are
chosen afterwards: `tersely train blend MODEL OUT --weight accuracy=1 --weight brevity=2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from pydantic import Field, field_validator

from ..config import Recipe, RecipeError, Section
from ..memory import ResidentModels
from ..methods import Method
from ..preflight import CheckedRecipe, check_recipe
from ..traces import PreferencePair, SampledTrace, collect_traces
from ..training_run import TrainingRun
from .heads import Heads, install_heads, save_heads

Objective = Literal["accuracy", "brevity", "format"]
OBJECTIVE = "objective"  # column of the training examples: the index of the head that learns them


class MahDpo(Section):
    """Settings."""

    objectives: tuple[Objective, ...] = Field(default=("accuracy", "brevity", "format"), min_length=2)
    samples: int = Field(default=8, ge=2)  # completions per question
    pairs: int = Field(default=4, ge=1)  # most pairs per question and objective
    beta: float = Field(default=0.1, gt=0)  # of DPO
    gap: float = Field(default=0.2, ge=0)  # how much longer the rejected completion of a brevity pair is, as a share
    min_accuracy: float = Field(default=0.5, ge=0, le=1)  # with fewer right, a question teaches no brevity; ours
    nll_weight: float = Field(default=0.0, ge=0)  # see `build_dpo_trainer`; much as in arXiv 2404.19733
    frozen: bool = False  # train only the heads; in the paper, the trunk learns too

    @field_validator("objectives")
    @classmethod
    def _check_unique(cls, given: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(set(given)) < len(given):
            raise ValueError("an objective is named twice")
        return given


class MahDpoRecipe(Recipe):
    """The recipe of this method."""

    mahdpo: MahDpo = MahDpo()


def _validate(recipe: MahDpoRecipe) -> CheckedRecipe:
    if recipe.optimiser.lora is not None:
        raise RecipeError("optimiser.lora trains adapters, but heads are full matrices; remove it", code="no_lora")
    settings = recipe.mahdpo
    trained: Literal["heads", "model"] = "heads" if settings.frozen else "model"
    resident = ResidentModels(reference=True, sequences=2, heads=len(settings.objectives), trained=trained)
    content = f"pairs of one objective each, from {settings.samples} completions for each question"
    return check_recipe(recipe, completions=1, resident=resident, step_content=content)


def _train(run: TrainingRun[MahDpoRecipe]) -> None:
    settings, engine = run.recipe.mahdpo, run.load_model()
    sampled = collect_traces(run, run.make_sampler(engine), "answers", settings.samples)
    rng = Random(f"objectives:{run.recipe.seed}")
    pairs = {
        name: [
            pair
            for traces in sampled
            for pair in make_objective_pairs(name, traces, rng, settings.pairs, settings.gap, settings.min_accuracy)
        ]
        for name in settings.objectives
    }
    if missing := [name for name, found in pairs.items() if not found]:
        raise RecipeError(
            f"no two completions of a question differ in {' or '.join(missing)}; sample more of them, use other "
            "questions or a lower rollouts.max_new_tokens, or remove it from mahdpo.objectives",
            code="nothing_to_learn",
        )
    run.log("learning " + ", ".join(f"{len(found)} pairs of {name}" for name, found in pairs.items()))
    if settings.frozen:
        engine.model.requires_grad_(False)
    heads = install_heads(engine.model, settings.objectives)
    trainer = build_headed_trainer(run, engine.model, engine.tokenizer, list(pairs.values()), heads)
    run.run_trainer(trainer, finish=lambda model, folder: save_heads(model, heads, folder))


def build_headed_trainer(
    run: TrainingRun[MahDpoRecipe],
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Sequence[PreferencePair]],
    heads: Heads,
) -> Any:
    """Build a DPO trainer for the pairs of each head; micro batches have one objective each, in turn."""
    from ..offline import TokenCollator, TokenDPOTrainer, build_dpo_trainer, schedule_examples, to_dpo_example

    class HeadedCollator(TokenCollator):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            return {**super().torch_call(examples), OBJECTIVE: examples[0][OBJECTIVE]}

    class HeadedDPOTrainer(TokenDPOTrainer):
        collator = HeadedCollator
        extra_columns = (*TokenDPOTrainer.extra_columns, OBJECTIVE)

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            heads.active = inputs[OBJECTIVE]
            rest = {key: value for key, value in inputs.items() if key != OBJECTIVE}
            return super()._compute_loss(model, rest, return_outputs)

    recipe, size = run.recipe, run.recipe.optimiser.micro_batch
    scheduled = [schedule_examples([to_dpo_example(pair) for pair in same], recipe) for same in pairs]
    examples: list[dict[str, Any]] = []
    for number in range(recipe.optimiser.steps * recipe.rollouts.prompts // size):
        turn, objective = divmod(number, len(scheduled))
        batch = scheduled[objective][turn * size : (turn + 1) * size]
        examples += [{**example, OBJECTIVE: objective} for example in batch]
    return build_dpo_trainer(
        run,
        model,
        tokenizer,
        examples,
        beta=recipe.mahdpo.beta,
        nll_weight=recipe.mahdpo.nll_weight,
        trainer_class=HeadedDPOTrainer,
        ddp_find_unused_parameters=True,  # a batch passes through only one of the heads
    )


def make_objective_pairs(
    objective: str, traces: Sequence[SampledTrace], rng: Random, most: int, gap: float, min_accuracy: float = 0.0
) -> list[PreferencePair]:
    """At most `most` pairs of one question's completions that differ in one objective.

    accuracy: right over wrong. brevity: among right ones, over those longer by the share `gap`, if at least the share
    `min_accuracy` is right. format: ended by the model over cut off.
    """
    finished = [t for t in traces if t.finished]
    right = [t for t in finished if t.right]
    if objective == "accuracy":
        candidates = [(good, bad) for good in right for bad in finished if not bad.right]
    elif objective == "brevity":
        usable = right if len(right) >= min_accuracy * len(traces) else []
        candidates = [(brief, long) for brief in usable for long in usable if long.length > (1 + gap) * brief.length]
    else:
        candidates = [(good, bad) for good in finished for bad in traces if not bad.finished]
    return [PreferencePair(objective, *both) for both in rng.sample(candidates, min(most, len(candidates)))]


METHOD = Method(recipe=MahDpoRecipe, validate=_validate, train=_train)
