"""Decode a batch that `generate` has prepared.

Without watchers this gives what `model.generate` would, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ...types import StepHook, TokenSink, Watcher
from ..sequence import SequenceState
from .decode_loop import DecodeLoop
from .generation_rules import read_generation_rules, refuse_unsupported
from .hooks import StreamerHook
from .id_history import IdHistory
from .model_runner import RaggedRunner, make_runner
from .sampler import Sampler


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What is particular to the sequences of a batch; the defaults are those of `generate`.

    Attributes:
        watchers: one per sequence.
        max_new_tokens: of each sequence.
        temperatures: of each sequence, in place of the batch's.
        sink: notified of new tokens.
        signals: sequences keep the signals of their tokens; needs a `SignalsHook`.
        hooks: follow the decoding.
        isolated: each sequence's prompt is read by itself even if others are equal, as hooks that change the forward
            pass or keep hidden states require.
        inverse_cdf: see `SamplingParams`.
    """

    watchers: Sequence[Watcher | None] | None = None
    max_new_tokens: Sequence[int] | None = None
    temperatures: Sequence[float | None] = ()
    sink: TokenSink | None = None
    signals: bool = False
    hooks: Sequence[StepHook] = ()
    isolated: bool = False
    inverse_cdf: bool = False


@dataclass(slots=True)
class DecodedBatch:
    """The sequences of a batch, with the ids, cache, scores and logits that `generate` may return."""

    sequences: list[SequenceState]
    ids: Tensor | None
    cache: Any
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def decode_batch(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    settings: BatchSettings,
    streamer: Any = None,
    **model_kwargs: Any,
) -> DecodedBatch:
    """Decode input_ids [sequences, length]; stopping criteria are asked after sampled tokens, not after forced ones."""
    watchers, limits = settings.watchers, settings.max_new_tokens
    watched = watchers is not None and any(watcher is not None for watcher in watchers)
    refuse_unsupported(model, generation_config, model_kwargs, watched)
    as_generate = not watched and limits is None
    rules = read_generation_rules(logits_processor, stopping_criteria, generation_config)
    # `generate` lets rows run on if it knows no end of sequence, which is not visible once rows end one by one.
    rules.pads |= not as_generate
    runner = make_runner(model, input_ids, generation_config, model_kwargs)
    logits = runner.prefill(input_ids, share=not as_generate and not settings.isolated)
    room = rules.max_length - input_ids.shape[1]
    sequences = [
        SequenceState(
            index,
            eos=rules.eos,
            limit=room if limits is None else min(room, limits[index]),
            ragged=runner.ragged,
            last_prompt_token=last,
            watcher=None if watchers is None else watchers[index],
            sink=settings.sink,
            keep_signals=settings.signals,
        )
        for index, last in enumerate(input_ids[:, -1].tolist())
    ]
    hooks = [*settings.hooks, *([] if streamer is None else [StreamerHook(streamer, rules.pad)])]
    ids = IdHistory(
        input_ids,
        model_kwargs.get("attention_mask"),
        rules.pad,
        kept=rules.reads_ids or not isinstance(runner, RaggedRunner),
    )
    records = rules.record_scores or rules.record_logits
    shrinks = runner.ragged and ids.tensor is None and streamer is None and not as_generate and not records
    sampler = Sampler(rules, input_ids, settings.temperatures, settings.inverse_cdf)
    with getattr(model, "_optimize_model_for_decode", nullcontext)():
        DecodeLoop(runner, sampler, sequences, hooks, ids, shrinks).run(logits)
    return DecodedBatch(
        sequences,
        ids.tensor if as_generate else None,
        runner.cache if as_generate else None,
        sampler.scores,
        sampler.raw_logits,
    )
