"""Learning a depth shortcut: an adapter that says early what the frozen model says at its end, and a gate for it.

What a token is at the exit layer does not depend on whether tokens before it left: the layers below run for all. So the
adapter learns from states that were read once, and a whole completion is tried in one forward with its exits on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax

from ...controller.engines.transformers.hidden_states import find_decoder_layers
from ...controller.engines.transformers.research.early_exit import apply_adapter, early_exit, score
from ..sampling import DivergedError
from ..traces import SampledTrace

_ROWS = 8
_SPLIT = 2048
_COARSER = 0.85
"""By how much fewer tokens leave in the next try, where those that stay are told something else by those that left."""


@dataclass(frozen=True, slots=True)
class ExitReadings:
    """Of thinking tokens: the states after the exit layer, and what the model gives its head; both [tokens, width]."""

    early: Tensor
    final: Tensor


@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold, None where nothing agrees, and what it does to tokens that were held out.

    left: the share that leaves. agreement: how often the likeliest token is the model's, of those that left, and, of
    those that stayed, with the others gone.
    """

    threshold: float | None
    left: float
    agreement_left: float
    agreement_stayed: float
    tokens: int


def thinking_tokens(trace: SampledTrace, close: int) -> list[bool]:
    """Which tokens of prompt and completion the model thinks, those that were forced left out."""
    end = trace.ids.index(close) if close in trace.ids else len(trace.ids)
    mine = [bool(learnt) and place < end for place, learnt in enumerate(trace.learnt)]
    return [False] * len(trace.prompt_ids) + mine


@torch.no_grad()
def read(model: Any, traces: Sequence[SampledTrace], layer: int, close: int) -> ExitReadings:
    """Read all thinking tokens, as the model reads them without exits."""
    early, final = [], []
    for ids, mask, thinks in _batches(model, traces, close):
        states: list[Tensor] = []
        handle = find_decoder_layers(model, layer).module.register_forward_hook(
            lambda module, inputs, output, states=states: states.append(output)
        )
        try:
            last = _decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        finally:
            handle.remove()
        early.append(states[0][thinks])
        final.append(last[thinks])
    return ExitReadings(torch.cat(early).float(), torch.cat(final).float())


def learn(
    model: Any,
    found: ExitReadings,
    *,
    width: int,
    gate: int,
    steps: int,
    tokens: int,
    rate: float,
    warmup: int,
    clip: float,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """The arrays of an adapter and a gate, `tokens` at a step; the model is frozen.

    The adapter learns the model's own distribution (the Kullback-Leibler divergence from it), the gate whether the
    likeliest token is the model's as the adapter is now. Raises DivergedError for a loss that is no number.
    """
    source = torch.Generator().manual_seed(seed)
    parts = _begin(found.early.shape[1], width, gate, source, found.early.device)
    model.requires_grad_(False)
    optimiser = torch.optim.AdamW(parts.values(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, warmup))
    for step in range(1, steps + 1):
        picked = torch.randint(len(found.early), (tokens,), generator=source).to(found.early.device)
        states = found.early[picked]
        with torch.no_grad():
            wanted = _said(model, found.final[picked], normed=True)
        said = _said(model, apply_adapter(parts, states))
        divergence = kl_div(said, wanted, log_target=True, reduction="batchmean")
        agrees = (said.argmax(-1) == wanted.argmax(-1)).float()
        doubt = binary_cross_entropy_with_logits(score(parts, states), agrees)
        loss = divergence + doubt
        if not bool(loss.isfinite()):
            raise DivergedError(f"the loss is no number at step {step}; lower optimiser.learning_rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parts.values(), clip)
        optimiser.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            say(f"step {step}/{steps}: divergence {divergence.item():.3f} nats, agrees {agrees.mean().item():.1%}")
    return {name: part.detach() for name, part in parts.items()}


@torch.no_grad()
def choose(
    model: Any, parts: Mapping[str, Tensor], traces: Sequence[SampledTrace], layer: int, close: int, agreement: float
) -> Chosen:
    """The threshold at which most tokens leave, such that those that leave agree, and so do those that stay.

    traces: that nothing was learnt from. agreement: the least share of likeliest tokens that are the model's.
    """
    held = read(model, traces, layer, close)
    scores, right = _judged(model, parts, held)
    order = scores.argsort(descending=True)
    rates = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1, device=order.device)
    enough = (rates >= agreement).nonzero()
    count = int(enough[-1]) + 1 if len(enough) else 0
    while count:
        # Halfway to the next score: in another order of adding up, the same token would fall on the other side.
        following = scores[order[min(count, len(order) - 1)]]
        threshold = float((scores[order[count - 1]] + following) / 2)
        left, stayed = walked(model, parts, traces, layer, close, threshold, held)
        if min(left, stayed) >= agreement:
            return Chosen(threshold, float((scores >= threshold).double().mean()), left, stayed, len(order))
        count = int(count * _COARSER)
    return Chosen(None, 0.0, 1.0, 1.0, len(order))


@torch.no_grad()
def walked(
    model: Any,
    parts: Mapping[str, Tensor],
    traces: Sequence[SampledTrace],
    layer: int,
    close: int,
    threshold: float,
    held: ExitReadings,
) -> tuple[float, float]:
    """How often the likeliest token is the model's with the exits on: of thinking tokens that left, and that stayed."""
    goes, same = [], []
    done = 0
    for ids, mask, thinks in _batches(model, traces, close):

        def leave(states: Tensor, thinks: Tensor = thinks) -> Tensor:
            gone = thinks & (score(parts, states) >= threshold)
            goes.append(gone[thinks])
            return gone

        with early_exit(model, layer, lambda states: apply_adapter(parts, states), leave):
            last = _decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[thinks]
        wanted = held.final[done : done + len(last)]
        done += len(last)
        same.append(_likeliest(model, last) == _likeliest(model, wanted))
    gone, right = torch.cat(goes), torch.cat(same).double()
    return tuple(float(right[some].mean()) if bool(some.any()) else 1.0 for some in (gone, ~gone))  # type: ignore[return-value]


def _judged(model: Any, parts: Mapping[str, Tensor], held: ExitReadings) -> tuple[Tensor, Tensor]:
    """The gate's scores, and where the adapter's likeliest token is the model's."""
    right = [
        _said(model, apply_adapter(parts, early)).argmax(-1) == _likeliest(model, final)
        for early, final in zip(held.early.split(_SPLIT), held.final.split(_SPLIT), strict=True)
    ]
    return score(parts, held.early), torch.cat(right)


def _batches(model: Any, traces: Sequence[SampledTrace], close: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, mask and which tokens are thought, all [rows, length] and padded on the right, longest last."""
    order = sorted(traces, key=lambda trace: len(trace.prompt_ids) + trace.length)
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        texts = [[*trace.prompt_ids, *trace.ids] for trace in rows]
        size = max(map(len, texts))
        ids = torch.tensor([text + [0] * (size - len(text)) for text in texts], device=model.device)
        mask = torch.tensor([[1] * len(text) + [0] * (size - len(text)) for text in texts], device=model.device)
        found = [thinking_tokens(trace, close) for trace in rows]
        thinks = torch.tensor([own + [False] * (size - len(own)) for own in found], device=model.device)
        if bool(thinks.any()):
            yield ids, mask, thinks


def _begin(states: int, width: int, gate: int, source: torch.Generator, device: Any) -> dict[str, Tensor]:
    """An adapter that changes nothing yet, and a gate that knows nothing."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source) / math.sqrt(shape[-1])

    parts = {
        "down": drawn(width, states),
        "down_bias": torch.zeros(width),
        "up": torch.zeros(states, width),
        "up_bias": torch.zeros(states),
        "gate_in": drawn(gate, states),
        "gate_in_bias": torch.zeros(gate),
        "gate_out": torch.zeros(gate),
        "gate_out_bias": torch.zeros(()),
    }
    return {name: part.to(device).requires_grad_() for name, part in parts.items()}


def _rate(step: int, steps: int, warmup: int) -> float:
    """A rise over `warmup` steps, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _decoder(model: Any) -> Any:
    return model.get_decoder()


def _said(model: Any, states: Tensor, normed: bool = False) -> Tensor:
    """Log-probabilities by the model's own last norm and head, [tokens, vocabulary]."""
    head = model.get_output_embeddings()
    states = states.to(head.weight.dtype)
    return log_softmax(head(states if normed else _decoder(model).norm(states)).float(), dim=-1)


def _likeliest(model: Any, final: Tensor) -> Tensor:
    """The likeliest token of each of the states [tokens, width] that the head is given."""
    found = [_said(model, part, normed=True).argmax(-1) for part in final.split(_SPLIT)]
    return torch.cat(found)
