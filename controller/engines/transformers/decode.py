"""Decode a batch that `generate` has prepared, as a callable for `model.generate(custom_generate=...)`.

Without watchers this gives what `model.generate` would, token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput

from ....errors import OptionError
from ....models import choose_cache_name
from ...types import TokenSink, Watcher
from ..sequence import SequenceState
from .decode_loop import DecodeLoop, IdHistory
from .hooks import StepHook, StreamerHook
from .model_runner import ModelRunner, RaggedRunner, make_runner
from .sampler import GenerationRules, Sampler, refuse_unsupported


@dataclass(slots=True)
class BatchDecoder:
    """Decodes one batch; a callable for `model.generate(custom_generate=...)`.

    The call sets `sequences`, and in `ids`, `cache`, `scores` and `logits` what `generate` may return; ids and cache
    are None where sequences have watchers or limits of their own.
    """

    watchers: Sequence[Watcher | None] | None = None
    max_new_tokens: Sequence[int] | None = None
    temperatures: Sequence[float | None] = ()  # of each sequence, in place of the batch's
    sink: TokenSink | None = None
    signals: bool = False  # sequences keep the signals of their tokens; needs a `SignalsHook`
    hooks: Sequence[StepHook] = ()
    isolated: bool = False
    """Each sequence's prompt is read by itself even if others are equal, as hooks that change the forward pass or keep
    hidden states require."""
    inverse_cdf: bool = False  # see `SamplingParams`
    streamer: Any = None
    sequences: list[SequenceState] = field(init=False, default_factory=list)
    ids: Tensor | None = field(init=False, default=None)
    cache: Any = field(init=False, default=None)
    scores: list[Tensor] = field(init=False, default_factory=list)
    logits: list[Tensor] = field(init=False, default_factory=list)

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        *,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Decode input_ids [sequences, length]; criteria are asked after sampled tokens, not after forced ones."""
        watched = self.watchers is not None and any(watcher is not None for watcher in self.watchers)
        refuse_unsupported(model, generation_config, model_kwargs, watched)
        as_generate = not watched and self.max_new_tokens is None
        rules = GenerationRules(logits_processor, stopping_criteria, generation_config)
        # `generate` lets rows run on if it knows no end of sequence, which is not visible once rows end one by one.
        rules.pads |= not as_generate
        runner = make_runner(model, input_ids, generation_config, model_kwargs)
        keep_once = watched and self.max_new_tokens is not None  # else the cache may be the caller's
        logits = runner.prefill(input_ids, share=not as_generate and not self.isolated, keep_once=keep_once)
        self.sequences = self._make_sequences(input_ids, rules, runner)
        streamer = [] if self.streamer is None else [StreamerHook(self.streamer, rules.pad)]
        kept = rules.reads_ids or not isinstance(runner, RaggedRunner)
        ids = IdHistory(input_ids, model_kwargs.get("attention_mask"), rules.pad, kept)
        records = rules.record_scores or rules.record_logits
        shrinks = runner.ragged and not kept and not streamer and not as_generate and not records
        sampler = Sampler(rules, input_ids, self.temperatures, self.inverse_cdf)
        loop = DecodeLoop(runner, sampler, self.sequences, [*self.hooks, *streamer], ids, shrinks)
        with getattr(model, "_optimize_model_for_decode", nullcontext)():
            loop.run(logits)
        self.scores, self.logits = sampler.scores, sampler.raw_logits
        if as_generate:
            self.ids, self.cache = ids.tensor, runner.cache
        return input_ids

    def _make_sequences(self, input_ids: Tensor, rules: GenerationRules, runner: ModelRunner) -> list[SequenceState]:
        room = rules.max_length - input_ids.shape[1]
        return [
            SequenceState(
                index,
                eos=rules.eos,
                limit=room if self.max_new_tokens is None else min(room, self.max_new_tokens[index]),
                ragged=runner.ragged,
                last_prompt_token=last,
                watcher=None if self.watchers is None else self.watchers[index],
                sink=self.sink,
                keep_signals=self.signals,
            )
            for index, last in enumerate(input_ids[:, -1].tolist())
        ]


MakeWatcher = Callable[[list[int]], Watcher | None]
"""Makes the watcher of a sequence from its prompt ids without padding; None leaves it alone."""


def as_custom_generate(
    make_watcher: MakeWatcher | None = None,
    *,
    streamer: Any = None,
    tokenizer: Any = None,
    stop_strings: str | Sequence[str] | None = None,
    sink: TokenSink | None = None,
    on_decoded: Callable[[BatchDecoder], None] | None = None,
) -> Callable[..., Any]:
    """Return a callable for `generate(custom_generate=...)`, also within a text-generation pipeline.

    With a callable, transformers drops `streamer` and `tokenizer` and refuses `stop_strings`: pass them here. Stop
    strings without a tokenizer are an OptionError. Without `make_watcher` the output is that of `generate`.
    """
    criterion = None
    if stop_strings:
        if tokenizer is None:
            raise OptionError("stop_strings need the model's tokenizer; pass tokenizer=")
        strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        criterion = StopStringCriteria(tokenizer=tokenizer, stop_strings=strings)

    def generate(
        model: Any,
        input_ids: Tensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **prepared: Any,
    ) -> Any:
        # Refuse before a streamer gets anything.
        refuse_unsupported(model, generation_config, prepared, watched=False)
        watchers = None
        if make_watcher is not None:
            watchers = [make_watcher(prompt) for prompt in _unpad(input_ids, prepared.get("attention_mask"))]
        if streamer is not None:
            streamer.put(input_ids.cpu())
        if criterion is not None:
            stopping_criteria = StoppingCriteriaList([*stopping_criteria, criterion])
        decoder = BatchDecoder(watchers, sink=sink, streamer=streamer)
        decoder(model, input_ids, stopping_criteria=stopping_criteria, generation_config=generation_config, **prepared)
        if on_decoded is not None:
            on_decoded(decoder)
        return _as_generate_output(decoder, input_ids, generation_config)

    return generate


def _unpad(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Return each row's ids [rows, length] without padding; the mask may reach further back over a given cache."""
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is None:
        return rows
    keep = attention_mask[:, -input_ids.shape[1] :].tolist()
    return [list(compress(row, mask)) for row, mask in zip(rows, keep, strict=True)]


def _as_generate_output(decoder: BatchDecoder, input_ids: Tensor, config: GenerationConfig) -> Any:
    """A batch as `generate` returns it: ids padded on the right, or its output object."""
    ids = decoder.ids
    if ids is None:
        width = max(len(sequence.tokens) for sequence in decoder.sequences)
        pad = int(config._pad_token_tensor) if config._pad_token_tensor is not None else 0
        padded = [sequence.tokens + [pad] * (width - len(sequence.tokens)) for sequence in decoder.sequences]
        ids = torch.cat([input_ids, input_ids.new_tensor(padded, dtype=input_ids.dtype)], dim=1)
    if not config.return_dict_in_generate:
        return ids
    known = {item.name for item in fields(GenerateDecoderOnlyOutput)}
    values: dict[str, Any] = {
        "sequences": ids,
        "scores": tuple(decoder.scores) if config.output_scores else None,
        "logits": tuple(decoder.logits) if config.output_logits else None,
        choose_cache_name(known): decoder.cache,
    }
    return GenerateDecoderOnlyOutput(**values)
