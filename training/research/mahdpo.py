"""Learn a head for each objective by DPO, to be weighted at inference (MAH-DPO).

From Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards (arXiv 2510.01167): pairs of
the model's own completions differ in one objective: right over wrong, brief over long, finished over cut off. Heads are
linear, so a mixture of them is one matrix, in an ordinary model: `tersely train blend MODEL OUT --weight accuracy=1`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
import typer
from pydantic import Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...controller.options import flag
from ...errors import ModelError, OptionError, unknown
from ...io import check_new_folder
from ..config import Recipe, RecipeError, Section
from ..methods import Method
from ..offline import PreferencePair, SampledTrace, build_dpo_trainer, collect_traces, schedule_examples
from ..preflight import CheckedRecipe, ResidentModels, check_recipe
from ..training_run import TrainingRun, write_model

if TYPE_CHECKING:
    from ..trainer import TokenDPOTrainer

FILE = "heads.safetensors"
Objective = Literal["accuracy", "brevity", "format"]
OBJECTIVE = "objective"  # column of the training examples: the index of the head that learns them


class Heads(nn.Module):
    """Replaces a model's head: one copy per objective, each with normal noise of its own, of which one is active."""

    bias = None

    def __init__(self, weight: Tensor, names: Sequence[str], noise: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.names, self.active = tuple(names), 0
        drawn = torch.Generator().manual_seed(seed)
        self.heads = nn.ParameterList(
            nn.Parameter(weight.detach() + noise * torch.randn(weight.shape, generator=drawn).to(weight)) for _ in names
        )

    @property
    def weight(self) -> nn.Parameter:
        """The weights of the active head, [vocabulary, hidden]."""
        weight: nn.Parameter = self.heads[self.active]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def install_heads(model: Any, names: Sequence[str], noise: float = 0.0, seed: int = 0) -> Heads:
    """Give a model one head per objective; raises ModelError unless its own head is a plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise ModelError(
            f"the model's head is {type(head).__name__}; accepted: a linear layer without a bias",
            code="unsupported_head",
        )
    heads = Heads(head.weight, names, noise, seed)
    _replace_head(model, heads)
    return heads


def save_heads(model: Any, heads: Heads, folder: Path) -> None:
    """Write the heads into the folder of the model, and give the model their mean as its only head."""
    weights = {name: w.detach().cpu().contiguous() for name, w in zip(heads.names, heads.heads, strict=True)}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    mean = mix_heads(weights, dict.fromkeys(weights, 1.0))
    head = nn.Linear(mean.shape[1], mean.shape[0], bias=False, dtype=mean.dtype)
    head.weight = nn.Parameter(mean)
    _replace_head(model, head)


def _replace_head(model: Any, head: nn.Module) -> None:
    """Replace a model's head by one that is not tied to the embeddings."""
    model.set_output_embeddings(head)
    config = model.config.get_text_config(decoder=True)
    config.tie_word_embeddings = model.config.tie_word_embeddings = False


def load_heads(folder: Path | str) -> dict[str, Tensor]:
    """Load the heads of a model that `tersely train mahdpo` wrote; raises ModelError."""
    try:
        return load_file(Path(folder) / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot read heads from {folder} ({error}); accepted: the folder `model` of `tersely train mahdpo`",
            code="no_heads",
        ) from None


def check_weights(heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Raise OptionError unless these weights of heads can be scaled to a sum of 1."""
    if unheard := [name for name in weights if name not in heads]:
        raise unknown("objective", unheard[0], sorted(heads))
    if not all(0 <= weight < math.inf for weight in weights.values()) or not sum(weights.values()):
        raise OptionError(
            f"the weights of objectives are {dict(weights)}; accepted: numbers of at least 0, of which one is positive",
            code="invalid_weight",
        )


def mix_heads(heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted mean of heads, [vocabulary, hidden], with weight 0 where none is given; raises OptionError."""
    check_weights(heads, weights)
    total = sum(weights.values())
    mixed = sum((heads[name].float() * (weight / total) for name, weight in weights.items()), torch.zeros(()))
    return mixed.to(next(iter(heads.values())).dtype)


def set_head_weights(model: Any, heads: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Set the head of a loaded model to a mixture of these heads, in place; raises ModelError if they do not fit."""
    weight, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if weight.data_ptr() == table.data_ptr() or any(head.shape != weight.shape for head in heads.values()):
        raise ModelError(
            f"the model's head is {list(weight.shape)}{' and tied to its embeddings' * (weight is table)}, which these "
            "heads do not fit; accepted: the model in the folder `model` that `tersely train mahdpo` wrote",
            code="other_model",
        )
    with torch.no_grad():
        weight.copy_(mix_heads(heads, weights))


def blend(
    model: Annotated[Path, typer.Argument(help="The folder `model` of `tersely train mahdpo`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    weight: Annotated[list[str], flag("Weight of an objective; may be repeated.", metavar="NAME=WEIGHT")],
) -> None:
    """Mix the heads of a model by weights of their objectives into an ordinary model (MAH-DPO)."""
    weights: dict[str, float] = {}
    for given in weight:
        name, _, value = given.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise OptionError(f"--weight is {given!r}; accepted: NAME=WEIGHT, as in accuracy=1") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    heads = load_heads(model)
    check_weights(heads, weights)
    check_new_folder(out)
    mixed: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    set_head_weights(mixed, heads, weights)
    write_model(mixed, AutoTokenizer.from_pretrained(model), out)
    print(f"saved to {out}")


class MahDpo(Section):
    """Settings."""

    objectives: tuple[Objective, ...] = Field(default=("accuracy", "brevity", "format"), min_length=2)
    samples: int = Field(default=8, ge=2)  # completions per question
    pairs: int = Field(default=4, ge=1)  # most pairs per question and objective
    beta: float = Field(default=0.1, gt=0)  # of DPO; this and the noise are the authors'
    noise: float = Field(default=1e-3, ge=0)  # deviation of what is added to each head at the start
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
    if recipe.optimizer.lora is not None:
        raise RecipeError("optimizer.lora trains adapters, but heads are full matrices; remove it", code="no_lora")
    settings, size = recipe.mahdpo, recipe.optimizer.micro_batch
    if size < len(settings.objectives):
        raise RecipeError(
            f"optimizer.micro_batch is {size}; accepted: {len(settings.objectives)} or more, a pair of each objective",
            code="small_micro_batch",
        )
    trained: Literal["heads", "model"] = "heads" if settings.frozen else "model"
    resident = ResidentModels(reference=True, sequences=2, heads=len(settings.objectives), trained=trained)
    content = f"pairs of all objectives in turn, from {settings.samples} completions for each question"
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
    heads = install_heads(engine.model, settings.objectives, settings.noise, run.recipe.seed)
    trainer = build_headed_trainer(run, engine.model, engine.tokenizer, list(pairs.values()), heads)
    run.run_trainer(trainer, finish=lambda model, folder: save_heads(model, heads, folder))


def build_headed_trainer(
    run: TrainingRun[MahDpoRecipe], model: Any, tokenizer: Any, pairs: Sequence[Sequence[PreferencePair]], heads: Heads
) -> TokenDPOTrainer:
    """Build a DPO trainer whose loss is the mean over objectives of the mean over a micro batch's pairs of each.

    Pairs of all objectives come in turn, so a micro batch has some of each.
    """
    from ..trainer import TokenCollator, TokenDPOTrainer

    class HeadedCollator(TokenCollator):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            return {**super().torch_call(examples), OBJECTIVE: torch.tensor([one[OBJECTIVE] for one in examples])}

    class HeadedDPOTrainer(TokenDPOTrainer):
        collator = HeadedCollator

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            objectives, losses = inputs.pop(OBJECTIVE), []
            for heads.active in objectives.unique().tolist():
                rows = (objectives == heads.active).repeat(2)  # of the chosen completions, and of the rejected ones
                part = {key: value[rows] for key, value in inputs.items()}
                losses.append(super()._compute_loss(model, part, return_outputs))
            return torch.stack(losses).mean()

    recipe, count = run.recipe, len(pairs)
    scheduled = [schedule_examples([pair.to_example() for pair in same], recipe) for same in pairs]
    return build_dpo_trainer(
        run,
        model,
        tokenizer,
        [
            {**scheduled[number % count][number // count], OBJECTIVE: number % count}
            for number in range(recipe.optimizer.steps * recipe.rollouts.prompts)
        ],
        beta=recipe.mahdpo.beta,
        nll_weight=recipe.mahdpo.nll_weight,
        trainer_class=HeadedDPOTrainer,
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
