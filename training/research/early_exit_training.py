"""Train an early-exit adapter, which predicts the frozen model's output from an intermediate layer, and its gate.

The layers below the exit always run, so states are collected once, and one forward pass evaluates a completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax

from ...controller.engines.transformers.research.early_exit import apply_adapter, early_exit, score
from ..config import Optimiser
from ..sampling import DivergedError
from ..traces import SampledTrace

_ROWS = 8
_CHUNK = 2048
_RETRY = 0.85  # the share of exits kept in the next try, if tokens that stay disagree because of those that left


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
    own = [bool(mask) and i < end for i, mask in enumerate(trace.loss_mask)]
    return [False] * len(trace.prompt_ids) + own


@torch.no_grad()
def collect_states(model: Any, traces: Sequence[SampledTrace], layer: int, close: int) -> ExitStates:
    """Collect the states of all thinking tokens, without early exits."""
    early, final = [], []
    for ids, mask, thinking in _make_batches(model, traces, close):
        states = model.get_decoder()(
            input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
        ).hidden_states
        early.append(states[layer][thinking])
        final.append(states[-1][thinking])
    return ExitStates(torch.cat(early).float(), torch.cat(final).float())


def train_adapter(
    model: Any,
    states: ExitStates,
    optimiser: Optimiser,
    *,
    width: int,
    gate: int,
    tokens: int,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """Train the arrays of an adapter and a gate of these widths, on `tokens` per step; the model is frozen.

    The adapter learns the model's distribution (by KL divergence), the gate whether the most likely token of the
    current adapter is the model's. Raises DivergedError for a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    device, steps = states.early.device, optimiser.steps
    arrays = _init_arrays(states.early.shape[1], width, gate, generator, device)
    model.requires_grad_(False)
    optimizer = torch.optim.AdamW(arrays.values(), lr=optimiser.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # linear warm-up, then a half cosine to zero
        optimizer,
        lambda step: min(1.0, (step + 1) / (optimiser.warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    for step in range(1, steps + 1):
        batch = torch.randint(len(states.early), (tokens,), generator=generator).to(device)
        early = states.early[batch]
        with torch.no_grad():
            target = _log_probs(model, states.final[batch], normed=True)
        predicted = _log_probs(model, apply_adapter(arrays, early))
        divergence = kl_div(predicted, target, log_target=True, reduction="batchmean")
        agrees = (predicted.argmax(-1) == target.argmax(-1)).float()
        loss = divergence + binary_cross_entropy_with_logits(score(arrays, early), agrees)
        if not bool(loss.isfinite()):
            raise DivergedError(f"the loss of step {step} is not finite; lower optimiser.learning_rate")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(arrays.values(), optimiser.clip_gradients)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            log(f"step {step}/{steps}: divergence {divergence.item():.3f} nats, agreement {agrees.mean().item():.1%}")
    return {name: array.detach() for name, array in arrays.items()}


@torch.no_grad()
def choose_threshold(
    model: Any,
    arrays: Mapping[str, Tensor],
    traces: Sequence[SampledTrace],
    layer: int,
    close: int,
    agreement: float,
) -> ChosenThreshold:
    """Choose the lowest threshold at which both the tokens that leave and those that stay agree with the model.

    `traces` are held out from training; `agreement` is the share of tokens whose likeliest next token is the model's.
    """
    states = collect_states(model, traces, layer, close)
    scores, chunks = (
        score(arrays, states.early),
        zip(states.early.split(_CHUNK), states.final.split(_CHUNK), strict=True),
    )
    # Whether the adapter's most likely token is the model's.
    right = torch.cat(
        [
            _log_probs(model, apply_adapter(arrays, early)).argmax(-1) == _most_likely(model, final)
            for early, final in chunks
        ]
    )
    order = scores.argsort(descending=True)
    rates = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1, device=order.device)
    enough = (rates >= agreement).nonzero()
    count = int(enough[-1]) + 1 if len(enough) else 0
    while count:
        # Halfway to the next score: rounding in another order of summation must not change which tokens leave.
        following = scores[order[min(count, len(order) - 1)]]
        threshold = float((scores[order[count - 1]] + following) / 2)
        left, stayed = measure_agreement(model, arrays, traces, layer, close, threshold, states)
        if min(left, stayed) >= agreement:
            return ChosenThreshold(threshold, float((scores >= threshold).double().mean()), left, stayed, len(order))
        count = int(count * _RETRY)
    return ChosenThreshold(None, 0.0, 1.0, 1.0, len(order))


@torch.no_grad()
def measure_agreement(
    model: Any,
    arrays: Mapping[str, Tensor],
    traces: Sequence[SampledTrace],
    layer: int,
    close: int,
    threshold: float,
    states: ExitStates,
) -> tuple[float, float]:
    """How often the most likely token is the model's with early exits, for tokens that leave and that stay."""
    exits, same = [], []
    done = 0
    for ids, mask, thinking in _make_batches(model, traces, close):

        def leave(early: Tensor, thinking: Tensor = thinking) -> Tensor:
            leaving = thinking & (score(arrays, early) >= threshold)
            exits.append(leaving[thinking])
            return leaving

        with early_exit(model, layer, lambda early: apply_adapter(arrays, early), leave):
            last = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[thinking]
        target = states.final[done : done + len(last)]
        done += len(last)
        same.append(_most_likely(model, last) == _most_likely(model, target))
    left, right = torch.cat(exits), torch.cat(same).double()
    left_rate, stayed_rate = (float(right[some].mean()) if bool(some.any()) else 1.0 for some in (left, ~left))
    return left_rate, stayed_rate


def _make_batches(model: Any, traces: Sequence[SampledTrace], close: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, attention mask and thinking mask, all [rows, length] and padded on the right, the longest rows last."""
    order = sorted(traces, key=lambda trace: len(trace.prompt_ids) + trace.length)
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        sequences = [[*trace.prompt_ids, *trace.ids] for trace in rows]
        size = max(map(len, sequences))

        def pad(values: Sequence[Sequence[Any]], padding: Any, size: int = size) -> Tensor:
            return torch.tensor([[*row, *[padding] * (size - len(row))] for row in values], device=model.device)

        thinking = pad([find_thinking_tokens(trace, close) for trace in rows], False)
        if bool(thinking.any()):
            yield pad(sequences, 0), pad([[1] * len(sequence) for sequence in sequences], 0), thinking


def _init_arrays(
    hidden: int, width: int, gate: int, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """An adapter that changes nothing, and an undecided gate."""

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
