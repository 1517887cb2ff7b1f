"""SFT on one's own shortest right completions, plain, pruned or of a controller; to learn a hint or a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...controller.engines.transformers.engine import TransformersEngine, load_engine
from ...controller.policies.base import PARAGRAPH
from ...controller.policies.hint import HINT_TOKEN, BrevityHint, find_learned_hint
from ...controller.text.thoughts import ThinkingState
from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...errors import ModelError
from ...kernels.signals import logit_signals
from ..config import Recipe, RecipeError, Section, ThinkingEffort
from ..offline import SampledTrace, choose_shortest, collect_traces, split_by_mask, to_sft, train_sft
from ..preflight import CheckedRecipe, ResidentModels, check_frozen, check_recipe
from ..training_run import TrainingRun
from . import Method

POLICY = "hint"
PROMPT_TOKEN = "<|prompt_{}|>"  # name of a token of a learned prompt, by its number


class Sft(Section):
    """Settings. With `rollouts.policies`, the completions are those of a controller."""

    samples: int = Field(default=8, ge=1)  # per question; the `keep` shortest right ones are learned
    keep: int = Field(default=1, ge=1)
    effort: ThinkingEffort | None = None  # the tier to sample in; by default the tier that is trained
    # learn what the controller did, see `to_sft`. If False, its text is only masked from the loss, and the model learns
    # to wait for the controller.
    imitate: bool = True
    prune: float = Field(default=0.0, ge=0, lt=1)  # share of the thoughts that are left out, see `prune_steps`
    skip: str = "[SKIP]"  # what stands in place of each; "" leaves nothing


class SftRecipe(Recipe):
    """The recipe of SFT. The controller's closings of the thinking are learned, and its hints removed."""

    sft: Sft = Sft()


def _check_sft(recipe: SftRecipe) -> CheckedRecipe:
    settings = recipe.sft
    content = f"completions, the {settings.keep} shortest right of {settings.samples} for each question"
    return check_recipe(recipe, completions=1, step_content=content)


def _train_sft(run: TrainingRun[SftRecipe]) -> None:
    sampler, settings = run.make_sampler(), run.recipe.sft
    sampled = collect_traces(run, sampler, "traces", settings.samples, settings.effort)
    traces = [[to_sft(t, sampler.close) if settings.imitate else t for t in group] for group in sampled]
    kept = choose_shortest(traces, settings.keep)
    if settings.prune:
        codec, model = sampler.session.codec, sampler.engine.model
        kept = [
            prune_steps(t, token_entropies(model, t), codec, sampler.close, settings.prune, settings.skip) for t in kept
        ]
    before = fmean(trace.length for group in sampled for trace in group)
    after = fmean(trace.length for trace in kept)
    run.log(f"learning {len(kept)} completions of {after:.0f} tokens on average; all sampled ones have {before:.0f}")
    train_sft(run, sampler.engine, kept)


def prune_steps(
    trace: SampledTrace, entropies: Sequence[float], codec: TokenizerAdapter, close: int, share: float, skip: str
) -> SampledTrace:
    """The completion with its most predictable steps replaced by `skip`, as in step entropy (arXiv 2508.03346).

    A step is a thought, its entropy the sum of those of its tokens, and the lowest `share` of all steps is replaced,
    rounded down; a blank line after a step stays after a marker. What follows the token `close` is kept.
    """
    end = trace.ids.index(close) if close in trace.ids else trace.length
    thinking = ThinkingState(codec)
    for token in trace.ids[:end]:
        thinking.add(token)
    thinking.add_forced(())  # ends the last thought
    steps = sorted(thinking.thoughts, key=lambda step: sum(entropies[step.start : step.end]))
    ids, mask = list(trace.ids), list(trace.loss_mask)
    for step in sorted(steps[: int(share * len(steps))], key=lambda step: step.start, reverse=True):
        marker = codec.encode(skip + step.text[len(step.text.rstrip()) :]) if skip else []
        ids[step.start : step.end], mask[step.start : step.end] = marker, [1] * len(marker)
    return replace(trace, ids=ids, loss_mask=mask)


@torch.no_grad()
def token_entropies(model: Any, trace: SampledTrace) -> list[float]:
    """The entropy in nats of what each token of the completion was drawn from, at temperature 1."""
    ids = torch.tensor([[*trace.prompt_ids, *trace.ids]], device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=trace.length + 1).logits[0, :-1]
    entropies: list[float] = logit_signals(logits).entropy.tolist()
    return entropies


SFT = Method(recipe=SftRecipe, validate=_check_sft, train=_train_sft)


class Hint(Section):
    """Settings."""

    # "brief": a hint, from the `keep` shortest right completions with it. "recover": a prompt at the start of every
    # input, from all completions of `teacher`, the model before it was compressed
    objective: Literal["brief", "recover"] = "brief"
    teacher: str | None = None
    tokens: int = Field(default=100, ge=1)  # of the prompt; a hint has those of its words
    samples: int = Field(default=8, ge=1)  # per question
    keep: int = Field(default=1, ge=1)
    strength: float = Field(default=1.0, gt=0, le=2)  # of the learned change, the paper's gamma; above 1 extrapolates


class HintRecipe(Recipe):
    """The recipe of ConciseHint-T (arXiv 2506.18810) and of soft prompts: learn new tokens of a frozen model.

    In the shortest right completions with the hint of `rollouts.policies`, its words are replaced by new tokens, which
    start with the embeddings of the words and are all that is trained. With the objective "recover", new tokens that
    start with embeddings of the vocabulary precede every input, and the loss is that of the next token in texts of the
    uncompressed model, which regains what compression lost (Compress, Then Prompt, arXiv 2305.11186).
    """

    hint: Hint = Hint()


def _check_hint(recipe: HintRecipe) -> CheckedRecipe:
    check_frozen(recipe)
    settings, recovers = recipe.hint, recipe.hint.objective == "recover"
    if recovers != (settings.teacher is not None):
        raise RecipeError(
            f"hint.objective is {settings.objective!r} and hint.teacher {settings.teacher!r}; accepted: with "
            "'recover', the model before compression as teacher, and with 'brief' no teacher",
            code="objective_without_teacher",
        )
    if recovers:
        content = f"completions of {settings.teacher}, from {settings.samples} for each question"
    else:
        _make_policy(recipe)
        content = f"completions with a hint, the {settings.keep} shortest right of {settings.samples} for each question"
    resident = ResidentModels(models=1 + recovers, trained="embeddings")
    return check_recipe(recipe, completions=1, resident=resident, step_content=content)


def _make_policy(recipe: HintRecipe) -> BrevityHint:
    """The policy that gives the hint in words; raises RecipeError."""
    settings = recipe.rollouts.policies.get(POLICY)
    if settings is None:
        raise RecipeError(
            "rollouts.policies has no hint to learn; add `policies: {hint: {}}`, with settings of the policy if needed",
            code="no_hint_policy",
        )
    return BrevityHint(**settings)


def _train_hint(run: TrainingRun[HintRecipe]) -> None:
    engine, settings = run.load_model(), run.recipe.hint
    ids, kept = (_prepare_hint if settings.objective == "brief" else _prepare_prompt)(run, engine)
    before = engine.model.get_input_embeddings().weight[ids].clone().detach()
    _freeze_except(engine.model, ids)

    @torch.no_grad()
    def scale_change(model: Any, folder: Path) -> None:
        table = model.get_input_embeddings().weight
        table[ids] = before + settings.strength * (table[ids] - before)

    run.log(f"learning {len(ids)} embeddings from {len(kept)} completions")
    train_sft(run, engine, kept, finish=scale_change)


def _prepare_hint(run: TrainingRun[HintRecipe], engine: TransformersEngine) -> tuple[list[int], list[SampledTrace]]:
    """The new tokens, with the embeddings of the hint's words, and the completions to learn."""
    words = _make_policy(run.recipe).text + PARAGRAPH
    _check_room(run.recipe.model, engine, HINT_TOKEN, len(engine.tokenizer.encode(words, add_special_tokens=False)))
    sampled = collect_traces(run, run.make_sampler(engine), "traces", run.recipe.hint.samples)
    ids = add_hint_tokens(engine.model, engine.tokenizer, words)
    hint = find_learned_hint(engine.tokenizer)
    rewritten = [[replace_forced_words(trace, engine.tokenizer, words, hint) for trace in group] for group in sampled]
    with_hint = [[trace for trace in group if trace is not None] for group in rewritten]
    return ids, choose_shortest(with_hint, run.recipe.hint.keep)


def _prepare_prompt(run: TrainingRun[HintRecipe], engine: TransformersEngine) -> tuple[list[int], list[SampledTrace]]:
    """The new tokens, with embeddings of random tokens, and the teacher's completions behind them."""
    settings, table = run.recipe.hint, engine.model.get_input_embeddings().weight
    _check_room(run.recipe.model, engine, PROMPT_TOKEN, settings.tokens)
    teacher = load_engine(str(settings.teacher), run.recipe.optimizer.dtype)
    if teacher.tokenizer.get_vocab() != engine.tokenizer.get_vocab():
        raise RecipeError(
            f"{settings.teacher} has other tokens than {run.recipe.model}; give the model that it was made of",
            code="other_tokenizer",
        )
    sampled = collect_traces(run, run.make_sampler(teacher), "traces", settings.samples)
    seeded = torch.Generator().manual_seed(run.recipe.seed)
    drawn = torch.randint(len(engine.tokenizer), (settings.tokens,), generator=seeded).to(table.device)
    ids = add_prompt(engine.model, engine.tokenizer, table[drawn].detach())
    return ids, [replace(trace, prompt_ids=[*ids, *trace.prompt_ids]) for group in sampled for trace in group]


def replace_forced_words(trace: SampledTrace, tokenizer: Any, words: str, new: str) -> SampledTrace | None:
    """The completion with `words` replaced in the text that a policy wrote; None if they are not in it."""
    ids: list[int] = []
    loss_mask: list[int] = []
    replaced = False
    for mask, tokens in split_by_mask(trace):
        if not mask:
            text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if words in text:
                replaced = True
                tokens = tokenizer.encode(text.replace(words, new), add_special_tokens=False)
        ids += tokens
        loss_mask += [mask] * len(tokens)
    return replace(trace, ids=ids, loss_mask=loss_mask) if replaced else None


def add_hint_tokens(model: Any, tokenizer: Any, words: str) -> list[int]:
    """Add one token per token of the words, with their embeddings, and return the new ids."""
    ids = tokenizer.encode(words, add_special_tokens=False)
    return add_tokens(model, tokenizer, HINT_TOKEN, model.get_input_embeddings().weight[ids].detach())


def add_prompt(model: Any, tokenizer: Any, embeddings: Tensor) -> list[int]:
    """Put new tokens with these embeddings [tokens, width] first in the chat template, and return their ids.

    A prompt that was learned on one compressed model can be given to another one, see `read_prompt`.
    """
    ids = add_tokens(model, tokenizer, PROMPT_TOKEN, embeddings)
    tokenizer.chat_template = find_learned_hint(tokenizer, PROMPT_TOKEN) + tokenizer.chat_template
    return ids


def read_prompt(model: Any, tokenizer: Any) -> Tensor:
    """The embeddings [tokens, width] of the prompt that a model has learned; raises ModelError if there is none."""
    if not (prompt := find_learned_hint(tokenizer, PROMPT_TOKEN)):
        raise ModelError("this model has learned no prompt; give one of `hint.objective: recover`", code="no_prompt")
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    embeddings: Tensor = model.get_input_embeddings().weight[ids].detach()
    return embeddings


@torch.no_grad()
def add_tokens(model: Any, tokenizer: Any, name: str, embeddings: Tensor) -> list[int]:
    """Add tokens called `name` by their numbers, with these embeddings [tokens, width], and return the new ids.

    In a separate output head the new tokens get zero weights. If the head is tied to the embeddings, they start as
    likely as the tokens that their embeddings come from, and the model learns not to write them along with everything
    else.
    """
    from tokenizers import AddedToken

    names = [name.format(number) for number in range(len(embeddings))]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    added: list[int] = tokenizer.convert_tokens_to_ids(names)
    if max(added) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    table[added] = embeddings.to(table)
    if isinstance(head, torch.nn.Linear) and head.weight is not table:
        head.weight[added] = 0
    return added


def _check_room(name: str, engine: TransformersEngine, token: str, count: int) -> None:
    """Raise RecipeError for a model that has such tokens already, or whose quantized head cannot grow by `count`."""
    model, tokenizer = engine.model, engine.tokenizer
    if find_learned_hint(tokenizer, token):
        raise RecipeError(
            f"{name} already has a learned hint or prompt; train from the model without it", code="hint_exists"
        )
    needed, head, rows = len(tokenizer) + count, model.get_output_embeddings(), len(model.get_input_embeddings().weight)
    if needed > rows and head is not None and not isinstance(head, torch.nn.Linear):
        raise RecipeError(
            f"the embedding table has no free rows ({rows} in all), and the quantized head cannot grow; quantize the "
            "model with --head keep",
            code="quantized_head",
        )


def _freeze_except(model: Any, ids: Sequence[int]) -> None:
    """Train only the embeddings of these tokens; the other rows get neither gradient nor weight decay."""
    model.requires_grad_(False)
    table = model.get_input_embeddings().weight
    chosen = torch.zeros(table.shape[0], 1, dtype=table.dtype)
    chosen[list(ids)] = 1
    table.requires_grad_(True)
    table.register_hook(lambda gradient: gradient * chosen.to(gradient.device))


HINT = Method(recipe=HintRecipe, validate=_check_hint, train=_train_hint)
