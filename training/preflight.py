"""Checks of a recipe before any work is done: data, chat template, markers, lengths, adapters, memory.

No weights are loaded; the tokenizer and the configuration of the model are enough.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations import get_reporting_integration_callbacks

from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.text.markers import Markers, parse_markers
from ..controller.text.tool_calls import check_tools
from ..errors import OptionError, PromptError, did_you_mean
from ..evaluation.agents.tools import TOOL_SCHEMAS, TOOLS
from ..models import load_config, load_tokenizer
from .config import Lora, Optimizer, Recipe, RecipeError
from .processes import check_launcher, world_size
from .rollouts import Row, load_rows, load_tasks
from .sampling import CompletionRequest, RolloutSampler

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True, slots=True)
class ResidentModels:
    """The models and heads that a method keeps in memory. With adapters, a reference model costs nothing extra."""

    models: int = 1  # full models in memory while completions are sampled
    reference: bool = False  # whether the model before training is needed as a reference
    sequences: int = 1  # per training example; two for a preference pair
    heads: int = 0  # output heads trained in place of the model's own
    # the trained part, unless adapters are trained; below heads nothing is saved for the backward pass
    trained: Literal["model", "embeddings", "heads", "nothing"] = "model"


ONE_MODEL = ResidentModels()


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """The questions and markers of a checked recipe, and findings about data and model for the user to read."""

    rows: Sequence[Row]
    markers: Markers
    findings: Sequence[str]


def check_recipe(
    recipe: Recipe,
    *,
    completions: int | None = None,  # that a step learns per question; by default those of a group
    no_think_tokens: int | None = None,  # as `start`, see `RolloutSampler`
    start: str | None = None,
    tools: bool = False,  # whether the method can train on tasks with tools
    stages: Mapping[str, Optimizer] | None = None,  # optimizers of stages before, each on one completion a question
    resident: ResidentModels = ONE_MODEL,
    step_content: str | None = None,  # what a step learns, if not completions of its own questions
) -> CheckedRecipe:
    """Check what all methods share; raises RecipeError naming everything that is wrong."""
    _check_environment(recipe)
    agentic = load_tasks(recipe.data) is not None
    if agentic and not tools:
        message = f"data.task is {recipe.data.task!r}, but method {recipe.method!r} does not train on tasks with tools"
        raise RecipeError(f"{message}; choose another task or method", code="no_tools")
    rows, engine = load_rows(recipe.data, recipe.model), load_meta_engine(recipe.model)
    if agentic:
        check_tools(engine)
    markers = None if recipe.markers is None else parse_markers(recipe.markers)
    offered = TOOL_SCHEMAS if agentic else ()
    sampler = RolloutSampler(
        engine, recipe.rollouts, markers, no_think_tokens=no_think_tokens, start=start, tools=offered
    )
    try:
        longest = max(len(sampler.prompt_ids(row["prompt"], row["tier"])) for row in rows)
    except (PromptError, OptionError) as error:
        raise RecipeError(str(error), code=error.code) from None
    completions = completions or recipe.rollouts.generations
    optimizers = {"optimizer": recipe.optimizer, **(stages or {})}
    problems = list(_check_questions(recipe, sampler, rows, longest, no_think_tokens))
    if resident.trained != "nothing":
        for key, settings in optimizers.items():
            size = recipe.rollouts.prompts * (completions if settings is recipe.optimizer else 1)
            problems += _check_optimizer(recipe, key, settings, size, engine.model.dtype)
    if problems:
        raise RecipeError("; ".join(problems), code="inconsistent_recipe")
    total = longest + recipe.rollouts.max_new_tokens
    all_stages = [recipe.model_copy(update={"optimizer": settings}) for settings in optimizers.values()]
    estimates = [estimate_memory(engine.model, stage, total, resident) for stage in all_stages]
    passes = recipe.optimizer.steps * recipe.rollouts.prompts / len(rows)
    content = step_content or f"questions with {completions} completions each, {passes:.3g} passes over the questions"
    findings = _describe(recipe, sampler, rows, longest, content, max(estimates, key=lambda each: each.total))
    return CheckedRecipe(rows, sampler.session.markers, findings)


def _describe(
    recipe: Recipe, sampler: RolloutSampler, rows: Sequence[Row], longest: int, content: str, memory: MemoryEstimate
) -> list[str]:
    settings = recipe.rollouts
    prepared = sampler.prepare([CompletionRequest(rows[0]["prompt"])])[0]
    opened = "opened by the chat template" if prepared.state == "thinking" else "opened in each prompt by tersely"
    tools = f"; tools: {', '.join(TOOLS)}" if load_tasks(recipe.data) is not None else ""
    return [
        f"data: {len(rows)} questions of {recipe.data.task} with gold answers, tiers "
        f"{', '.join(dict.fromkeys(recipe.data.efforts))}",
        f"template: thinking is {opened}; the first token of a completion decides whether it thinks, "
        f"{sampler.session.markers.close!r} closes the thinking{tools}",
        f"lengths: prompts up to {longest} tokens, completions up to {settings.max_new_tokens}, context "
        f"{sampler.engine.context_length or 'unlimited'}",
        f"steps: {recipe.optimizer.steps} of {settings.prompts} {content}",
        f"memory: {memory}" + ("" if settings.engine == "transformers" else ", plus vLLM's own besides its weights"),
    ]


def _check_environment(recipe: Recipe) -> None:
    """Check libraries, launcher, trackers and vLLM; raises RecipeError, OptionError."""
    if missing := [name for name in ("trl", "peft", "accelerate", "datasets") if find_spec(name) is None]:
        raise RecipeError(
            f"training needs {', '.join(missing)}; run `pip install 'tersely[train]'`", code="missing_library"
        )
    check_launcher(recipe.rollouts.engine, recipe.optimizer.autocast)
    trackers = list(recipe.saving.report_to)
    try:
        for tracker in get_reporting_integration_callbacks(trackers):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise RecipeError(f"saving.report_to is {', '.join(trackers)}: {error}", code="unusable_tracker") from None
    if recipe.rollouts.engine == "vllm":
        from .vllm_sampler import check_arguments

        check_arguments(recipe.rollouts.vllm)


def check_frozen(recipe: Recipe) -> None:
    """Refuse settings that would change weights which a method freezes; raises RecipeError."""
    if recipe.optimizer.lora is not None:
        raise RecipeError("optimizer.lora trains weights, but this method freezes them; remove it", code="no_lora")
    if recipe.optimizer.weight_decay:
        raise RecipeError(
            "optimizer.weight_decay would shrink weights that are not trained; accepted: 0", code="no_weight_decay"
        )


def load_meta_engine(name: str) -> TransformersEngine:
    """The engine of a model without its weights, for prompts, markers and shapes."""
    path, config = load_config(name)
    tokenizer = load_tokenizer(name, path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return TransformersEngine(model, tokenizer, name)


def _check_optimizer(
    recipe: Recipe, key: str, settings: Optimizer, completions: int, model_dtype: Any
) -> Iterator[str]:
    if completions % (settings.micro_batch * world_size()):
        each = f" in each of {world_size()} processes" if world_size() > 1 else ""
        yield (
            f"a step has {completions} completions, which is not a multiple of {key}.micro_batch, "
            f"{settings.micro_batch}{each}; choose one that divides it"
        )
    dtype = (str(model_dtype) if recipe.optimizer.dtype == "auto" else recipe.optimizer.dtype).removeprefix("torch.")
    if settings.lora is None and dtype in ("bfloat16", "float16"):
        yield (
            f"all weights would be trained in {dtype}, which rounds small updates away; set optimizer.dtype to "
            f"float32, and {key}.autocast to true for speed, or train adapters ({key}.lora)"
        )
    if settings is recipe.optimizer:
        # The completions of a question are compared, so one process has them all.
        if recipe.rollouts.prompts % world_size():
            yield f"rollouts.prompts is {recipe.rollouts.prompts}, which {world_size()} processes cannot divide evenly"
        return
    if settings.lora is not None and not settings.lora.merge:
        yield f"{key}.lora.merge is false, but the next stage starts from the merged model; remove it"
    if settings.dtype not in ("auto", recipe.optimizer.dtype):
        yield f"{key}.dtype is {settings.dtype!r}, but all stages share optimizer.dtype; remove it"


def _check_questions(
    recipe: Recipe, sampler: RolloutSampler, rows: Sequence[Row], longest: int, no_think_tokens: int | None
) -> Iterator[str]:
    rollouts, context = recipe.rollouts, sampler.engine.context_length
    if len(rows) < rollouts.prompts:
        yield f"there are {len(rows)} questions, but a step needs {rollouts.prompts}; lower rollouts.prompts"
    if empty := [row["id"] for row in rows if not row["answer"].strip() and row["gym_entry"] is None]:
        yield f"{len(empty)} questions have no gold answer, the first is {empty[0]!r}; add answers or remove them"
    if context is not None and longest + rollouts.max_new_tokens > context:
        yield (
            f"the longest prompt has {longest} tokens and rollouts.max_new_tokens is {rollouts.max_new_tokens}, more "
            f"than the model's context of {context}; lower it to {max(0, context - longest)} or less"
        )
    budget, reserve = rollouts.thinking_budget, rollouts.answer_reserve
    if budget is not None and budget + reserve > rollouts.max_new_tokens:
        yield (
            f"rollouts.max_new_tokens is {rollouts.max_new_tokens}, less than rollouts.thinking_budget, {budget}, plus "
            f"rollouts.answer_reserve, {reserve}: completions would end without an answer; raise it to "
            f"{budget + reserve}"
        )
    answer = max(len(sampler.session.codec.encode(row["answer"])) for row in rows)
    limit = min(reserve, no_think_tokens or reserve)
    if answer >= limit:
        yield f"the longest gold answer has {answer} tokens, answers may have {limit}; raise rollouts.answer_reserve"


def make_lora_config(lora: Lora | None, target: str | list[str] | None = None) -> LoraConfig | None:
    """The PEFT configuration of an adapter, perhaps for other targets than its own; None without an adapter."""
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_parse_targets(lora) if target is None else target,
        task_type="CAUSAL_LM",
    )


def _parse_targets(lora: Lora) -> str | list[str]:
    """Targets for PEFT, which matches a string against full names; a single word becomes a list of one name."""
    if not isinstance(lora.targets, str):
        return list(lora.targets)
    return [lora.targets] if lora.targets.isidentifier() else lora.targets


def count_adapter_parameters(model: Any, lora: Lora) -> int:
    """Parameters that PEFT would add to a model, perhaps on the meta device; raises RecipeError for wrong targets."""
    from peft import get_peft_model

    # The method that `tersely quantize` writes into a checkpoint.
    if dict(getattr(model.config, "quantization_config", None) or {}).get("quant_method") == "tersely_w4a8":
        raise RecipeError(
            "optimizer.lora needs plain linear layers, but this model is quantized; train it before quantizing",
            code="quantized_model",
        )
    targets, count = _parse_targets(lora), 0
    # One by one, because PEFT silently ignores those of several that match nothing.
    for target in [targets] if isinstance(targets, str) else [[name] for name in targets] or [[]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are shown when training starts
                adapted = get_peft_model(deepcopy(model), make_lora_config(lora, target))
        except (re.error, ValueError) as error:
            ends = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")})
            raise RecipeError(
                f"optimizer.lora.targets is {target!r}, which is not a valid expression, or matches no layers, or some "
                f"that cannot have adapters ({error}); {did_you_mean(''.join(target), ['all-linear', *ends])}",
                code="invalid_lora_targets",
            ) from None
        count += sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)
    return count


class MemoryEstimate(NamedTuple):
    """Bytes by purpose."""

    weights: float
    training: float
    activations: float
    cache: float

    @property
    def total(self) -> float:
        """Peak memory. Sampling and training alternate, so only the larger of cache and activations counts."""
        return self.weights + self.training + max(self.activations, self.cache)

    def __str__(self) -> str:
        weights, training, activations, cache = (f"{name} {size / 2**30:.2g}" for name, size in self._asdict().items())
        parts = f"{weights}, {training}, and the larger of {activations} and {cache}, which alternate"
        return f"about {self.total / 2**30:.2g} GiB ({parts})"


_ADAM_STATES = 2
_SAVED_HIDDEN, _SAVED_MLP, _SAVED_CHECKPOINTED = 12, 4, 2
"""Numbers saved for the backward pass, per token and layer: multiples of the hidden size and of the MLP's inner size.
With activation checkpointing, only a layer's input and output are saved."""
_SAVED_BYTES = {2: 3, 4: 4}
"""Bytes of a saved number by those of a weight: adapters, norms and autocast keep copies in the other precision."""


def estimate_memory(model: Any, recipe: Recipe, longest: int, resident: ResidentModels = ONE_MODEL) -> MemoryEstimate:
    """Estimate the memory of a recipe on a model, perhaps on the meta device; of vLLM only the weights are counted.

    `longest` is in tokens, of a prompt with its completion.
    """
    config, optimizer = model.config.get_text_config(decoder=True), recipe.optimizer
    plain = sum(weight.numel() for weight in model.parameters())
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    size = {"auto": table.element_size(), "float32": 4, "bfloat16": 2}[optimizer.dtype]  # of a weight
    heads = resident.heads * head.numel()
    with_heads = plain + heads - (head.numel() if heads and head is not table else 0)
    sizes = {"model": with_heads, "embeddings": table.numel(), "heads": heads, "nothing": 0}
    lora = optimizer.lora
    trained = sizes[resident.trained] if lora is None else count_adapter_parameters(model, lora)
    own_engine = recipe.rollouts.engine == "transformers"
    more_models = max(resident.models - 1, int(resident.reference and lora is None)) + (not own_engine)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    one_layer = _SAVED_HIDDEN * config.hidden_size + _SAVED_MLP * config.intermediate_size
    saved = _SAVED_CHECKPOINTED * config.hidden_size if optimizer.checkpoint_activations else one_layer
    layers = 0 if resident.trained == "heads" else config.num_hidden_layers
    tokens = optimizer.micro_batch * resident.sequences * longest
    cached = 2 * kv_heads * head_dim * config.num_hidden_layers
    # With several processes, each holds the gradients a second time, in its communication buffers.
    copies = 1 + _ADAM_STATES + (world_size() > 1)
    return MemoryEstimate(
        weights=(with_heads + more_models * plain) * size,
        training=trained * copies * (size if lora is None else 4),
        activations=tokens * (saved * layers + one_layer) * _SAVED_BYTES.get(size, size),
        cache=recipe.rollouts.batch * longest * cached * size if own_engine else 0,
    )
