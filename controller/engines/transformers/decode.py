"""The batched decode loop: one forward, one sampled token a row, and what that row's watcher says to it.

Without watchers it puts out what `model.generate` would, token for token. It takes what `generate` has prepared (see
`custom_generate`) and knows no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ...types import PromptRouter, TokenSink, Watcher
from ..sequence import SequenceState
from .decode_loop import DecodeLoop
from .generation_rules import read_generation_rules, refuse_unsupported
from .hidden_states import HiddenStates
from .model_runner import make_runner
from .research.early_exit import EarlyExitRows
from .research.steering import SteeringHooks


@dataclass(slots=True)
class Decoded:
    """What a run left: the rows, the ids and cache if they are those of `generate`, and what it was to record."""

    rows: list[SequenceState]
    ids: Tensor | None
    cache: Any
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def decode_rows(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    watchers: Sequence[Watcher | None] | None = None,
    max_new_tokens: Sequence[int] | None = None,
    streamer: Any = None,
    sink: TokenSink | None = None,
    measured: bool = False,
    states: HiddenStates | None = None,
    openings: Sequence[PromptRouter] | None = None,
    temperatures: Sequence[float | None] | None = None,
    steering: SteeringHooks | None = None,
    leaving: Sequence[EarlyExitRows] = (),
    inverse: bool = False,
    **model_kwargs: Any,
) -> Decoded:
    """Decode input_ids [rows, length], perhaps with a length limit for each row, and return the rows.

    Stopping criteria are asked after each sampled token, not after forced ones. measured: rows note the signals of
    their sampled tokens. states: watchers may read hidden states. openings, one a row, go on with the prompts.
    temperatures: of rows that have one of their own. steering, leaving: are told which rows stay in the batch.
    inverse: see `Sampling`.
    """
    watched = openings is not None or (watchers is not None and any(watcher is not None for watcher in watchers))
    refuse_unsupported(model, generation_config, model_kwargs, watched)
    complete = not watched and max_new_tokens is None
    rules = read_generation_rules(logits_processor, stopping_criteria, generation_config)
    # `generate` lets rows run on if it knows no end of sequence; nobody sees that once rows end one by one.
    rules.pads |= not complete
    stepper = make_runner(model, input_ids, generation_config, model_kwargs)
    # Alone, rows are what `generate` makes of them to the last bit; states are kept and steered row by row.
    logits = stepper.prefill(input_ids, share=not complete and states is None and steering is None)
    budget = rules.max_length - input_ids.shape[1]
    last = input_ids[:, -1].tolist()
    rows = [
        SequenceState(
            index,
            eos=rules.eos,
            budget=min(budget, max_new_tokens[index]) if max_new_tokens is not None else budget,
            ragged=stepper.ragged,
            last_prompt_token=last[index],
            watcher=watchers[index] if watchers is not None else None,
            sink=sink,
            measured=measured,
        )
        for index in range(len(last))
    ]
    shrinks = not (complete or rules.record_scores or rules.record_logits)
    loop = DecodeLoop(stepper, rules, rows, input_ids, model_kwargs.get("attention_mask"), streamer, shrinks)
    loop.measured, loop.states, loop.steering, loop.leaving = measured, states, steering, leaving
    for part in leaving:
        part.follow(rows)
    loop.picker.inverse = inverse
    loop.picker.warm(temperatures or ())
    if openings is not None and states is not None:
        logits = loop.open(openings, states)
    with getattr(model, "_optimize_model_for_decode", nullcontext)():
        loop.run(logits)
    if streamer is not None:
        streamer.end()
    decoded = Decoded(rows, loop.ids if complete else None, stepper.cache if complete else None)
    decoded.scores, decoded.logits = loop.picker.scores, loop.picker.raw
    return decoded
