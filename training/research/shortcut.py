"""Learn an adapter with which easy thinking tokens leave the model early (a depth shortcut, after System-1.5).

System-1.5 Reasoning (arXiv 2505.18962) trains the model to skip layers; here it stays frozen. An adapter learns its
distributions after one layer, a gate where the two agree, and held-out questions give the threshold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax
from torch.nn.utils.rnn import pad_sequence

from ...controller.engines.transformers.research.early_exit import FAMILIES, apply_adapter, early_exit, score
from ...probes.artifact import save
from ...probes.fingerprint import question_hash
from ...probes.research.learned import Shortcut
from ..config import Optimizer, Recipe, RecipeError, Section
from ..methods import Method
from ..offline import SampledTrace, collect_traces
from ..preflight import CheckedRecipe, ResidentModels, check_frozen, check_recipe, load_meta_engine
from ..processes import rank0_only
from ..sampling import DivergedError, RolloutSampler
from ..training_run import TrainingRun

_ROWS = 8
_CHUNK = 2048
_RETRY = 0.85  # the share of exits kept in the next try, if tokens that stay disagree because of those that left


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
    steps = f"steps: {recipe.optimizer.steps} of {recipe.shortcut.tokens} thinking tokens each"
    return replace(checked, findings=[steps if line.startswith("steps:") else line for line in checked.findings])


def _train(run: TrainingRun[ShortcutRecipe]) -> None:
    """A resumed run keeps its completions; training itself takes minutes and starts again."""
    sampler = run.make_sampler()
    sampled = collect_traces(run, sampler, "traces", run.recipe.shortcut.samples)
    rank0_only(lambda: _train_shortcut(run, sampler, sampled))
    run.log(f"wrote {run.folder / Shortcut.kind}; use it with `tersely run --policy shortcut --probes {run.folder}`")


def _train_shortcut(
    run: TrainingRun[ShortcutRecipe], sampler: RolloutSampler, sampled: Sequence[Sequence[SampledTrace]]
) -> None:
    recipe, settings, engine, close = run.recipe, run.recipe.shortcut, sampler.engine, sampler.close
    model = engine.model
    fit, held_out = split_questions(sampled, settings.held_out, recipe.seed)
    states = collect_states(model, fit, settings.layer, close)
    if not len(states.early):
        raise RecipeError(
            "no completion has a thinking token to learn from; use a model that thinks", code="nothing_to_learn"
        )
    run.log(f"learning {len(states.early)} thinking tokens after layer {settings.layer}")
    arrays = train_adapter(model, states, settings, recipe.optimizer, recipe.seed, run.log)
    chosen = choose_threshold(model, arrays, held_out, settings, close)
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
    save(shortcut, run.folder / Shortcut.kind)
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


@dataclass(frozen=True, slots=True)
class ExitStates:
    """States of thinking tokens after the exit layer, and the inputs of the model's head; both [tokens, width]."""

    early: Tensor
    final: Tensor


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """A gate threshold, None if no tokens may leave, and its effect on held-out tokens."""

    threshold: float | None
    left: float  # the share of tokens that leave
    agreement_left: float  # how often the most likely token of those that leave is the model's
    agreement_stayed: float  # the same for tokens that stay, given the exits of the others
    tokens: int


def find_thinking_tokens(trace: SampledTrace, close: int) -> list[bool]:
    """Which tokens of prompt and completion are thinking that the model wrote itself."""
    end = trace.ids.index(close) if close in trace.ids else len(trace.ids)
    return [False] * len(trace.prompt_ids) + [bool(mask) and i < end for i, mask in enumerate(trace.loss_mask)]


@torch.no_grad()
def collect_states(model: Any, traces: Sequence[SampledTrace], layer: int, close: int) -> ExitStates:
    """Collect the states of all thinking tokens, without early exits."""
    early, final = [], []
    for ids, mask, thinking in _make_batches(model, traces, close):
        output = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        early.append(output.hidden_states[layer][thinking])
        final.append(output.hidden_states[-1][thinking])
    return ExitStates(torch.cat(early).float(), torch.cat(final).float())


def train_adapter(
    model: Any,
    states: ExitStates,
    settings: ShortcutSettings,
    optimizer: Optimizer,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """Train the arrays of an adapter and a gate; the model is frozen.

    The adapter learns the model's distribution (by KL divergence), the gate whether the most likely token of the
    current adapter is the model's. Raises DivergedError for a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    device, steps = states.early.device, optimizer.steps
    width = states.early.shape[1]
    arrays = init_arrays(width, settings.width or width, settings.gate, generator, device)
    model.requires_grad_(False)
    adam = torch.optim.AdamW(arrays.values(), lr=optimizer.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # linear warm-up, then a half cosine to zero
        adam,
        lambda step: min(1.0, (step + 1) / (optimizer.warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    for step in range(1, steps + 1):
        batch = torch.randint(len(states.early), (settings.tokens,), generator=generator).to(device)
        early = states.early[batch]
        with torch.no_grad():
            target = _log_probs(model, states.final[batch], normed=True)
        predicted = _log_probs(model, apply_adapter(arrays, early))
        divergence = kl_div(predicted, target, log_target=True, reduction="batchmean")
        agrees = (predicted.argmax(-1) == target.argmax(-1)).float()
        loss = divergence + binary_cross_entropy_with_logits(score(arrays, early), agrees)
        if not bool(loss.isfinite()):
            raise DivergedError(f"the loss of step {step} is not finite; lower optimizer.learning_rate")
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(arrays.values(), optimizer.clip_gradients)
        adam.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            log(f"step {step}/{steps}: divergence {divergence.item():.3f} nats, agreement {agrees.mean().item():.1%}")
    return {name: array.detach() for name, array in arrays.items()}


@torch.no_grad()
def choose_threshold(
    model: Any, arrays: Mapping[str, Tensor], traces: Sequence[SampledTrace], settings: ShortcutSettings, close: int
) -> ChosenThreshold:
    """Choose the lowest threshold at which both the tokens that leave and those that stay agree with the model.

    `traces` are held out from training; agreement is the share of tokens whose likeliest next token is the model's.
    """
    states = collect_states(model, traces, settings.layer, close)
    scores = score(arrays, states.early)
    chunks = zip(states.early.split(_CHUNK), states.final.split(_CHUNK), strict=True)
    adapted = (
        _log_probs(model, apply_adapter(arrays, early)).argmax(-1) == _most_likely(model, final)
        for early, final in chunks
    )
    right, order = torch.cat(list(adapted)), scores.argsort(descending=True)
    rates = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1, device=order.device)
    enough = (rates >= settings.agreement).nonzero()
    count = int(enough[-1]) + 1 if len(enough) else 0
    while count:
        # Halfway to the next score: rounding in another order of summation must not change which tokens leave.
        following = scores[order[min(count, len(order) - 1)]]
        threshold = float((scores[order[count - 1]] + following) / 2)
        left, stayed = _measure_agreement(model, arrays, traces, settings.layer, close, threshold, states.final)
        if min(left, stayed) >= settings.agreement:
            return ChosenThreshold(threshold, float((scores >= threshold).double().mean()), left, stayed, len(order))
        count = int(count * _RETRY)
    return ChosenThreshold(None, 0.0, 1.0, 1.0, len(order))


def _measure_agreement(
    model: Any,
    arrays: Mapping[str, Tensor],
    traces: Sequence[SampledTrace],
    layer: int,
    close: int,
    threshold: float,
    final: Tensor,
) -> tuple[float, float]:
    """How often the most likely token is the model's with early exits, for tokens that leave and that stay."""
    exits, last = [], []
    for ids, mask, thinking in _make_batches(model, traces, close):

        def leave(early: Tensor, thinking: Tensor = thinking) -> Tensor:
            leaving = thinking & (score(arrays, early) >= threshold)
            exits.append(leaving[thinking])
            return leaving

        with early_exit(model, layer, lambda early: apply_adapter(arrays, early), leave):
            states = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last.append(states[thinking])
    left = torch.cat(exits)
    right = (_most_likely(model, torch.cat(last)) == _most_likely(model, final)).double()
    left_rate, stayed_rate = (float(right[some].mean()) if bool(some.any()) else 1.0 for some in (left, ~left))
    return left_rate, stayed_rate


def _make_batches(model: Any, traces: Sequence[SampledTrace], close: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, attention mask and thinking mask, all [rows, length] and padded on the right, the longest rows last."""
    order = sorted(traces, key=lambda trace: len(trace.prompt_ids) + trace.length)
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        sequences = [torch.tensor([*trace.prompt_ids, *trace.ids], device=model.device) for trace in rows]
        thinking = [torch.tensor(find_thinking_tokens(trace, close), device=model.device) for trace in rows]
        parts = (sequences, map(torch.ones_like, sequences), thinking)
        ids, mask, chosen = (pad_sequence(list(part), batch_first=True) for part in parts)
        if bool(chosen.any()):
            yield ids, mask, chosen


def init_arrays(
    hidden: int, width: int, gate: int, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """An adapter of this width that changes nothing, and an undecided gate of its own width."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    arrays = {
        "down": draw(width, hidden),
        "down_bias": torch.zeros(width),
        "up": torch.zeros(hidden, width),
        "up_bias": torch.zeros(hidden),
        "gate_in": draw(gate, hidden),
        "gate_in_bias": torch.zeros(gate),
        "gate_out": torch.zeros(gate),
        "gate_out_bias": torch.zeros(()),
    }
    return {name: array.to(device).requires_grad_() for name, array in arrays.items()}


def _log_probs(model: Any, states: Tensor, normed: bool = False) -> Tensor:
    """Log-probabilities by the model's own final norm and head, [tokens, vocabulary]."""
    head = model.get_output_embeddings()
    states = states.to(head.weight.dtype)
    return log_softmax(head(states if normed else model.get_decoder().norm(states)).float(), dim=-1)


def _most_likely(model: Any, final: Tensor) -> Tensor:
    """The most likely token for each input of the head, [tokens, width]."""
    return torch.cat([_log_probs(model, part, normed=True).argmax(-1) for part in final.split(_CHUNK)])


METHOD = Method(recipe=ShortcutRecipe, validate=_validate, train=_train, results=(Shortcut.kind,))
