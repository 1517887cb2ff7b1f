"""The decode loop as a callable for `model.generate(custom_generate=...)`, with one watcher per sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput

from ....errors import OptionError
from ...types import TokenSink, Watcher
from .decode import BatchDecoder, BatchSettings
from .generation_rules import refuse_unsupported
from .model_runner import CACHE_NAMES

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

    With a callable, transformers drops `streamer` and `tokenizer` and refuses `stop_strings`: pass them here. Without
    `make_watcher` the output is that of `generate`.

    Raises:
        OptionError: stop strings come without a tokenizer.
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
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        # Refuse before a streamer gets anything.
        refuse_unsupported(model, generation_config, model_kwargs, watched=False)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        if criterion is not None:
            stopping_criteria = StoppingCriteriaList([*stopping_criteria, criterion])
        watchers = None
        if make_watcher is not None:
            prompts = unpadded(input_ids, model_kwargs.get("attention_mask"))
            watchers = [make_watcher(prompt) for prompt in prompts]
        decoder = BatchDecoder(BatchSettings(watchers, sink=sink), streamer)
        decoder(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **model_kwargs,
        )
        if on_decoded is not None:
            on_decoded(decoder)
        return _as_generate_output(decoder, input_ids, generation_config)

    return generate


def unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
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
        next(name for name in CACHE_NAMES if name in known): decoder.cache,
    }
    return GenerateDecoderOnlyOutput(**values)
