"""The questions of a training run, and its pre-flight checks: data, chat template, markers, lengths, memory.

No weights are loaded; the tokenizer and the configuration of the model are enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from random import Random
from typing import Any

from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.text.markers import Markers, parse_markers
from ..controller.text.tool_calls import check_tools
from ..errors import OptionError, PromptError
from ..evaluation.agents.tasks import KINDS, Task, draw_tasks, get_system_prompt
from ..evaluation.agents.tools import TOOL_SCHEMAS, TOOLS
from ..evaluation.tasks.questions import Question, load
from ..models import load_config, load_tokenizer
from .config import Data, Optimiser, Recipe, RecipeError
from .memory import ONE_MODEL, MemoryEstimate, ResidentModels, estimate_memory
from .processes import check_launcher, world_size
from .sampling import CompletionRequest, RolloutSampler

Row = dict[str, Any]
"""A question. Columns: id, prompt (messages), answer, gym_entry (name, seed and index in reasoning-gym), tier, level
(the kind, for agent tasks). Methods add columns of their own."""

AGENTS = "agents"


def load_tasks(data: Data) -> list[Task] | None:
    """The tasks named by `agents` or `agents:KIND,KIND`; None for questions without tools. Raises OptionError."""
    name, _, kinds = data.task.partition(":")
    if name != AGENTS:
        return None
    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else KINDS
    return draw_tasks(data.split, data.seed, data.questions, chosen)


def load_rows(data: Data, model: str = "") -> list[Row]:
    """One row per question, with efforts assigned in turn, and the system prompt of the model; raises TaskError."""
    tasks, system = load_tasks(data), None
    if tasks is None:
        questions = load(data.task, data.split, data.questions, data.seed)
    else:
        system = get_system_prompt(model)
        questions = [Question(task.id, task.question, "; ".join(sorted(task.gold)), kind=task.kind) for task in tasks]
    head = [] if system is None else [{"role": "system", "content": system}]
    return [
        {
            "id": question.id,
            "prompt": [*head, {"role": "user", "content": question.problem}],
            "answer": question.answer,
            "gym_entry": None if question.drawn is None else asdict(question.drawn),
            "tier": data.efforts[i % len(data.efforts)],
            "level": question.kind if question.level is None else question.level,
        }
        for i, question in enumerate(questions)
    ]


def schedule_rows(rows: Sequence[Row], steps: int, size: int, seed: int) -> list[Row]:
    """The rows of all steps, `size` distinct ones each, in shuffled passes; written out, so a resumed run agrees."""
    rng, order = Random(f"schedule:{seed}"), list(range(len(rows)))
    usable = len(rows) - len(rows) % size
    scheduled: list[Row] = []
    while len(scheduled) < steps * size:
        rng.shuffle(order)
        scheduled += [rows[i] for i in order[:usable]]
    return scheduled[: steps * size]


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
    stages: Mapping[str, Optimiser] | None = None,  # optimisers of stages before, each on one completion a question
    resident: ResidentModels = ONE_MODEL,
    step_content: str | None = None,  # what a step learns, if not completions of its own questions
) -> CheckedRecipe:
    """Check what all methods share; raises RecipeError naming everything that is wrong."""
    _check_environment(recipe)
    agentic = load_tasks(recipe.data) is not None
    if agentic and not tools:
        raise RecipeError(
            f"data.task is {recipe.data.task!r}, but method {recipe.method!r} does not train on tasks with tools; "
            "choose another task or method",
            code="no_tools",
        )
    rows = load_rows(recipe.data, recipe.model)
    engine = load_meta_engine(recipe.model)
    if agentic:
        check_tools(engine)
    markers = None if recipe.markers is None else parse_markers(recipe.markers)
    sampler = RolloutSampler(
        engine,
        recipe.rollouts,
        markers,
        no_think_tokens=no_think_tokens,
        start=start,
        tools=TOOL_SCHEMAS if agentic else (),
    )
    completions = completions or recipe.rollouts.generations
    optimisers = {"optimiser": recipe.optimiser, **(stages or {})}
    dtype = engine.model.dtype if recipe.optimiser.dtype == "auto" else f"torch.{recipe.optimiser.dtype}"
    try:
        longest = max(len(sampler.prompt_ids(row["prompt"], row["tier"])) for row in rows)
    except (PromptError, OptionError) as error:
        raise RecipeError(str(error), code=error.code) from None
    problems = list(_check_questions(recipe, sampler, rows, longest, no_think_tokens))
    for key, settings in optimisers.items():
        if resident.trained != "nothing":
            size = recipe.rollouts.prompts * (completions if settings is recipe.optimiser else 1)
            problems += _check_optimiser(recipe, key, settings, size, dtype)
    if problems:
        raise RecipeError("; ".join(problems), code="inconsistent_recipe")
    longest += recipe.rollouts.max_new_tokens
    all_stages = [recipe.model_copy(update={"optimiser": settings}) for settings in optimisers.values()]
    estimates = [estimate_memory(engine.model, stage, longest, resident) for stage in all_stages]
    passes = recipe.optimiser.steps * recipe.rollouts.prompts / len(rows)
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
        f"lengths: prompts up to {longest - settings.max_new_tokens} tokens, completions up to "
        f"{settings.max_new_tokens}, context {sampler.engine.context_length or 'unlimited'}",
        f"steps: {recipe.optimiser.steps} of {settings.prompts} {content}",
        f"memory: {memory}" + ("" if settings.engine == "transformers" else ", plus vLLM's own besides its weights"),
    ]


def _check_environment(recipe: Recipe) -> None:
    """Check libraries, launcher, trackers and vLLM; raises RecipeError, OptionError."""
    if missing := [name for name in ("trl", "peft", "accelerate", "datasets") if find_spec(name) is None]:
        raise RecipeError(
            f"training needs {', '.join(missing)}; run `pip install 'tersely[train]'`", code="missing_library"
        )
    check_launcher(recipe.rollouts.engine, recipe.optimiser.autocast)
    check_trackers(recipe.saving.report_to)
    if recipe.rollouts.engine == "vllm":
        from .vllm_sampler import check_arguments

        check_arguments(recipe.rollouts.vllm)


def check_frozen(recipe: Recipe) -> None:
    """Refuse settings that would change weights which a method freezes; raises RecipeError."""
    if recipe.optimiser.lora is not None:
        raise RecipeError("optimiser.lora trains weights, but this method freezes them; remove it", code="no_lora")
    if recipe.optimiser.weight_decay:
        raise RecipeError(
            "optimiser.weight_decay would shrink weights that are not trained; accepted: 0", code="no_weight_decay"
        )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that transformers does not know, or that are not installed; raises RecipeError."""
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(list(names)):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise RecipeError(f"saving.report_to is {', '.join(names)}: {error}", code="unusable_tracker") from None


def load_meta_engine(name: str) -> TransformersEngine:
    """The engine of a model without its weights, for prompts, markers and shapes."""
    import torch
    from transformers import AutoModelForCausalLM

    path, config = load_config(name)
    tokenizer = load_tokenizer(name, path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return TransformersEngine(model, tokenizer, name)


def _check_optimiser(recipe: Recipe, key: str, settings: Optimiser, completions: int, dtype: Any) -> Iterator[str]:
    if completions % (settings.micro_batch * world_size()):
        each = f" in each of {world_size()} processes" if world_size() > 1 else ""
        yield (
            f"a step has {completions} completions, which is not a multiple of {key}.micro_batch, "
            f"{settings.micro_batch}{each}; choose one that divides it"
        )
    if settings.lora is None and str(dtype) in ("torch.bfloat16", "torch.float16"):
        yield (
            f"all weights would be trained in {str(dtype).removeprefix('torch.')}, which rounds small updates away; "
            f"set optimiser.dtype to float32, and {key}.autocast to true for speed, or train adapters ({key}.lora)"
        )
    if settings is recipe.optimiser:
        # The completions of a question are compared, so one process has them all.
        if recipe.rollouts.prompts % world_size():
            yield f"rollouts.prompts is {recipe.rollouts.prompts}, which {world_size()} processes cannot divide evenly"
        return
    if settings.lora is not None and not settings.lora.merge:
        yield f"{key}.lora.merge is false, but the next stage starts from the merged model; remove it"
    if settings.dtype not in ("auto", recipe.optimiser.dtype):
        yield f"{key}.dtype is {settings.dtype!r}, but all stages share optimiser.dtype; remove it"


def _check_questions(
    recipe: Recipe, sampler: RolloutSampler, rows: Sequence[Row], longest: int, no_think_tokens: int | None
) -> Iterator[str]:
    if len(rows) < recipe.rollouts.prompts:
        yield f"there are {len(rows)} questions, but a step needs {recipe.rollouts.prompts}; lower rollouts.prompts"
    if empty := [row["id"] for row in rows if not row["answer"].strip() and row["gym_entry"] is None]:
        yield f"{len(empty)} questions have no gold answer, the first is {empty[0]!r}; add answers or remove them"
    rollouts, context = recipe.rollouts, sampler.engine.context_length
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
    codec = sampler.session.codec
    answer = max(len(codec.encode(row["answer"])) for row in rows)
    limit = min(reserve, no_think_tokens or reserve)
    if answer >= limit:
        yield f"the longest gold answer has {answer} tokens, answers may have {limit}; raise rollouts.answer_reserve"
