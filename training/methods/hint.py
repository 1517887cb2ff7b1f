"""ConciseHint-T (arXiv 2506.18810): a hint that is learnt, as embeddings of tokens of its own; the model stays frozen.

Completions are sampled with the hint in words, as `rollouts.policies` sets it; of each question the shortest right ones
are kept, its words and the line breaks behind them are replaced by tokens that begin with their embeddings, and these
alone are trained. On a quantized model the same is a soft prompt that gives back some of what quantizing cost
(Compress, Then Prompt, arXiv 2305.11186): gradients go through layers of whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from ...controller.policies.base import PARAGRAPH
from ...controller.policies.hint import ConciseHint, learnt_hint
from ..config import Recipe, RecipeError, Section
from ..embeddings import add_tokens, blend, check_room, freeze_but
from ..memory import ResidentModels
from ..preflight import CheckedRecipe, check
from ..rewards import Correctness
from ..sampling import Sampler
from ..traces import SampledTrace, collect, shortest_right, to_rewritten
from ..training_run import TrainingRun

POLICY = "hint"


class Hint(Section):
    """samples: of each question, of which the `keep` shortest right ones with a hint in them are learnt. strength: how
    much of the learnt embeddings is kept beside those of the words, the paper's gamma; above 1 goes beyond them."""

    samples: int = Field(default=8, ge=1)
    keep: int = Field(default=1, ge=1)
    strength: float = Field(default=1.0, gt=0, le=2)


class HintRecipe(Recipe):
    """The recipe of this method."""

    hint: Hint = Hint()


def validate_recipe(recipe: HintRecipe) -> CheckedRecipe:
    """See `checks.check`; raises RecipeError where no hint is given in the rollouts."""
    policy(recipe)
    own = recipe.hint
    learns = f"completions with a hint, for each question the {own.keep} shortest right of {own.samples}"
    return check(recipe, completions=1, held=ResidentModels(trained="embeddings"), learns=learns)


def policy(recipe: HintRecipe) -> ConciseHint:
    """The hint in words that the learnt one is to replace."""
    found: Mapping[str, Any] | None = recipe.rollouts.policies.get(POLICY)
    if found is None:
        raise RecipeError(
            "rollouts.policies has no hint to learn from; accepted: `policies: {hint: {}}`, with settings of the "
            "policy where they are to be others"
        )
    if recipe.optimiser.lora is not None:
        raise RecipeError("optimiser.lora trains weights, and a learnt hint leaves them alone; leave it out")
    if recipe.optimiser.weight_decay:
        raise RecipeError("optimiser.weight_decay would wear down what is not trained; accepted: 0")
    return ConciseHint(**found)


def run(recipe: HintRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Sample, keep the shortest right ones, and train the hint on them; or go on with that."""
    from ..offline import train_sft

    engine, own, words = running.load(recipe), recipe.hint, policy(recipe).text + PARAGRAPH
    if learnt_hint(engine.tokenizer):
        raise RecipeError(f"{recipe.model} has learnt a hint already; train from the model without it")
    check_room(engine.model, engine.tokenizer, words)
    with Correctness(ground.markers.close) as correct:
        found = collect(
            Sampler(engine, recipe.rollouts, ground.markers),
            ground.rows,
            own.samples,
            recipe.out / "traces.jsonl",
            seed=recipe.seed,
            correct=correct,
            say=say,
        )
    ids = add_tokens(engine.model, engine.tokenizer, words)
    before, learnt = engine.model.get_input_embeddings().weight[ids].clone().detach(), learnt_hint(engine.tokenizer)
    freeze_but(engine.model, ids)

    def hinted(traces: list[SampledTrace]) -> list[SampledTrace]:
        made = (to_rewritten(trace, engine.tokenizer, words, learnt) for trace in traces)
        return [trace for trace in made if trace is not None]

    kept = [trace for traces in found for trace in shortest_right(hinted(traces), own.keep)]
    if not kept:
        raise RecipeError(
            f"none of {own.samples} completions of {len(found)} questions is right, ended by the model and was given a "
            "hint; set the hint earlier, ask easier questions, or raise rollouts.max_new_tokens"
        )
    say(f"learns {len(ids)} embeddings from {len(kept)} completions with a hint")
    train_sft(
        running,
        recipe,
        engine.model,
        engine.tokenizer,
        kept,
        finish=lambda model, folder: blend(model, ids, before, own.strength),
    )


RECIPE = HintRecipe
