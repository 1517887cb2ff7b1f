"""What can go wrong with a training, looked at before any of it is paid for: data, template, markers, lengths, memory.

No weights are loaded: tokenizer and configuration say enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..controller.budgets import canonical_effort
from ..controller.engines.checkpoints import check_causal, check_tokenizer, load_or_raise, resolve_checkpoint
from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.text.markers import Markers, parse_markers
from ..controller.text.tool_calls import check_tools
from ..errors import OptionError, PromptError, did_you_mean
from ..evaluation.agents.tools import TOOL_SCHEMAS, TOOLS
from .config import Optimiser, Recipe, RecipeError
from .data import Row, load_rows
from .environment import load_tasks
from .memory import ALONE, Estimate, ResidentModels, estimate
from .processes import check_processes, count
from .sampling import Sampler

LIBRARIES = ("trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """What a training stands on: its questions, and what was found out about them and the model, for people to read."""

    rows: Sequence[Row]
    markers: Markers
    findings: Sequence[str]


def check(
    recipe: Recipe,
    *,
    completions: int | None = None,
    no_think_tokens: int | None = None,
    start: str | None = None,
    tools: bool = False,
    stages: Mapping[str, Optimiser] = MappingProxyType({}),
    held: ResidentModels = ALONE,
    learns: str | None = None,
) -> CheckedRecipe:
    """Look at a recipe; raises RecipeError naming all that is wrong, or what stands in the way of looking further.

    completions: that a step learns of each of its questions, by default those of a group. tools: whether the method can
    do tasks that need some. stages: further optimisers by their keys, each of a stage that learns one completion of
    each question of a step, and whose whole model goes on to the next. held: what the method keeps in memory. learns:
    what a step learns of, for people, where that is not completions of its own questions.
    """
    _check_surroundings(recipe)
    agentic = load_tasks(recipe.data) is not None
    if agentic and not tools:
        raise RecipeError(f"data.task is {recipe.data.task!r}, and method {recipe.method!r} has no tools; use apo")
    rows = load_rows(recipe.data, recipe.model)
    engine = meta_engine(recipe.model)
    if agentic:
        check_tools(engine)
    markers = None if recipe.markers is None else parse_markers(recipe.markers)
    sampler = Sampler(
        engine,
        recipe.rollouts,
        markers,
        no_think_tokens=no_think_tokens,
        start=start,
        tools=TOOL_SCHEMAS if agentic else (),
    )
    longest = longest_prompt(sampler, rows)
    completions = completions or recipe.rollouts.generations
    weights = engine.model.dtype if recipe.optimiser.dtype == "auto" else f"torch.{recipe.optimiser.dtype}"
    troubles = [
        *_questions(recipe, rows),
        *(_sizes(recipe, completions, weights) if held.trained != "nothing" else ()),
        *_lengths(recipe, sampler, rows, longest, no_think_tokens),
        *(trouble for key, stage in stages.items() for trouble in _stage(recipe, key, stage, weights)),
    ]
    if troubles:
        raise RecipeError("; ".join(troubles))
    longest += recipe.rollouts.max_new_tokens
    stages_too = [recipe, *(recipe.model_copy(update={"optimiser": stage}) for stage in stages.values())]
    memory = max((estimate(engine.model, each, longest, held) for each in stages_too), key=lambda found: found.total)
    asked = f"questions with {completions} completions each, {passes(recipe, rows):.3g} passes over the questions"
    return CheckedRecipe(
        rows, sampler.session.markers, _findings(recipe, sampler, rows, longest, learns or asked, memory)
    )


def _findings(
    recipe: Recipe, sampler: Sampler, rows: Sequence[Row], longest: int, learns: str, memory: Estimate
) -> list[str]:
    """What was looked at, for people; longest: tokens of a prompt with its completion. learns: see `check`."""
    settings, own = recipe.rollouts, sampler.session
    prepared = own.prepare([rows[0]["prompt"]], sampler._options)[0]
    opened = "opened by the chat template" if prepared.state == "thinking" else "opened for the model in each prompt"
    tools = f"; tools are {', '.join(TOOLS)}" if load_tasks(recipe.data) is not None else ""
    return [
        f"data: {len(rows)} questions of {recipe.data.task} with gold answers, tiers "
        f"{', '.join(dict.fromkeys(recipe.data.efforts))}",
        f"template: thinking is {opened}; the first token of a completion decides, {own.markers.close!r} ends it"
        f"{tools}",
        f"lengths: prompts up to {longest - settings.max_new_tokens} tokens, completions up to "
        f"{settings.max_new_tokens}, the model takes {sampler.engine.context_length or 'any number'}",
        f"steps: {recipe.optimiser.steps} of {settings.prompts} {learns}",
        f"memory: {memory}" + ("" if settings.engine == "transformers" else ", and what vLLM takes beside weights"),
    ]


def _check_surroundings(recipe: Recipe) -> None:
    """Refuse what libraries and launchers that are at hand cannot do; raises RecipeError, OptionError."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise RecipeError(f"training needs {', '.join(missing)}; run `pip install 'tersely[train]'`")
    check_processes(recipe.rollouts.engine, recipe.optimiser.autocast)
    check_trackers(recipe.saving.report_to)
    if recipe.rollouts.engine == "vllm":
        from .vllm_sampler import check_arguments

        check_arguments(recipe.rollouts.vllm)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that transformers does not know or that are not installed; raises RecipeError."""
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    there = integration_utils.get_available_reporting_integrations() if names else []
    for name in names:
        if name not in known:
            raise RecipeError(f"unknown tracker {name!r}; {did_you_mean(name, sorted(known))}")
        if name not in there and find_spec("flytekit" if name == "flyte" else name) is None:
            raise RecipeError(
                f"saving.report_to has {name!r}, which is not installed; install what it needs, mostly by "
                f"`pip install {name}`"
            )


def check_effort(key: str, effort: str | None) -> None:
    """Refuse a tier that does not think, or that there is not; raises RecipeError."""
    try:
        thinks = effort is None or _thinks(effort)
    except OptionError as error:
        raise RecipeError(f"{key}: {error}") from None
    if not thinks:
        raise RecipeError(f"{key} is {effort!r}, which leaves no thinking to learn; accepted: easy, normal or hard")


def _thinks(effort: str) -> bool:
    """Whether a tier leaves thinking to be learnt; raises OptionError for an unknown one."""
    return canonical_effort(effort) not in ("none", "auto")


def meta_engine(name: str) -> TransformersEngine:
    """A model's engine without its weights: for prompts, markers and sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = resolve_checkpoint(name)
    config = load_or_raise(name, "configuration", lambda: AutoConfig.from_pretrained(place))
    check_causal(name, config)
    check_tokenizer(name, Path(place))
    tokenizer = load_or_raise(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(place))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return TransformersEngine(model, tokenizer, name)


def longest_prompt(sampler: Sampler, rows: Sequence[Row]) -> int:
    """Tokens of the longest prompt; raises RecipeError for a tier without thinking, or a prompt that is too long."""
    for row in rows:
        if not _thinks(row["tier"]):
            raise RecipeError(
                f"data.efforts has {row['tier']!r}, which leaves no choice to learn; accepted: easy, normal, hard, or "
                "OpenAI's names for them"
            )
    try:
        return max(len(sampler.prompt_ids(row["prompt"], row["tier"])) for row in rows)
    except (PromptError, OptionError) as error:
        raise RecipeError(str(error)) from None


def passes(recipe: Recipe, rows: Sequence[Row]) -> float:
    """How often each question is asked."""
    return recipe.optimiser.steps * recipe.rollouts.prompts / len(rows)


def _sizes(recipe: Recipe, completions: int, weights: Any) -> Iterator[str]:
    prompts = recipe.rollouts.prompts
    yield from _optimiser("optimiser", recipe.optimiser, prompts * completions, weights)
    if prompts % count():  # all completions of a question are rewarded in one process, for they are compared
        yield f"a step asks {prompts} questions (rollouts.prompts), which {count()} processes cannot share"


def _questions(recipe: Recipe, rows: Sequence[Row]) -> Iterator[str]:
    if len(rows) < recipe.rollouts.prompts:
        yield f"there are {len(rows)} questions and a step asks {recipe.rollouts.prompts}; lower rollouts.prompts"
    if empty := [row["id"] for row in rows if not row["answer"].strip() and row["drawn"] is None]:
        yield f"{len(empty)} questions have no gold answer, the first is {empty[0]!r}; nothing could be rewarded"


def _optimiser(key: str, settings: Optimiser, completions: int, weights: Any) -> Iterator[str]:
    """weights: the dtype that they are loaded in."""
    if completions % (settings.micro_batch * count()):
        shared = f" in each of {count()} processes" if count() > 1 else ""
        yield (
            f"a step has {completions} completions, which is no multiple of {key}.micro_batch, {settings.micro_batch}"
            f"{shared}; choose one that divides it"
        )
    if settings.lora is None and str(weights) in ("torch.bfloat16", "torch.float16"):
        yield (
            f"all weights would be trained in {str(weights).removeprefix('torch.')}, which rounds small steps away; "
            f"set optimiser.dtype to float32, and {key}.autocast to true for speed, or train adapters ({key}.lora)"
        )


def _stage(recipe: Recipe, key: str, settings: Optimiser, weights: Any) -> Iterator[str]:
    yield from _optimiser(key, settings, recipe.rollouts.prompts, weights)
    if settings.lora is not None and not settings.lora.merge:
        yield f"{key}.lora.merge is false, and the next stage begins with the merged model; leave it out"
    if settings.dtype not in ("auto", recipe.optimiser.dtype):
        yield f"{key}.dtype is {settings.dtype!r}, and all stages have that of optimiser.dtype; leave it out"


def _lengths(
    recipe: Recipe, sampler: Sampler, rows: Sequence[Row], longest: int, no_think_tokens: int | None
) -> Iterator[str]:
    rollouts, room = recipe.rollouts, sampler.engine.context_length
    if room is not None and longest + rollouts.max_new_tokens > room:
        yield (
            f"the longest prompt has {longest} tokens and rollouts.max_new_tokens is {rollouts.max_new_tokens}, more "
            f"than the model's context of {room}; lower it to {max(0, room - longest)} or less"
        )
    budget, reserve = rollouts.thinking_budget, rollouts.answer_reserve
    if budget is not None and budget + reserve > rollouts.max_new_tokens:
        yield (
            f"rollouts.max_new_tokens is {rollouts.max_new_tokens}, below the thinking budget of {budget} with "
            f"{reserve} tokens for the answer: thinking would be cut off unanswered; raise it to {budget + reserve}"
        )
    codec = sampler.session.codec
    answer = max(len(codec.encode(row["answer"])) for row in rows)
    least = min(reserve, no_think_tokens or reserve)
    if answer >= least:
        yield f"the longest gold answer has {answer} tokens and an answer may have {least}; allow for more"
