"""Splitting an output into thinking and answer, and into sampled and forced runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..trace import Span
from .markers import Markers
from .tokenizer_adapter import TokenizerAdapter


@dataclass(frozen=True, slots=True)
class ReasoningParts:
    """Thinking and answer texts without markers, and how many tokens belong to each (the marker to the thinking)."""

    thinking: str
    answer: str
    thinking_tokens: int
    answer_tokens: int


def split_reasoning(ids: Sequence[int], codec: TokenizerAdapter, markers: Markers, state: str) -> ReasoningParts:
    """Split output ids; `state` is where the prompt left the model (see `prompts.RenderedPrompt`)."""
    text = codec.decode(ids)
    if state == "before" and markers.open not in text:
        state = "answer"
    if state == "answer":
        return ReasoningParts("", text.strip(), 0, len(ids))
    body = text if state == "thinking" else text.split(markers.open, 1)[1]
    thinking, found, answer = body.partition(markers.close)
    if not found:
        return ReasoningParts(thinking.strip(), "", len(ids), 0)
    end = _first_prefix_with(ids, codec, markers.close)
    return ReasoningParts(thinking.strip(), answer.strip(), end, len(ids) - end)


def _first_prefix_with(ids: Sequence[int], codec: TokenizerAdapter, marker: str) -> int:
    """Length of the shortest prefix of `ids` whose text contains `marker` (binary search: containment only grows)."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if marker in codec.decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def build_spans(ids: Sequence[int], forced: Sequence[bool], codec: TokenizerAdapter) -> tuple[Span, ...]:
    """Runs of sampled and forced text."""
    out = []
    for is_forced, run in groupby(zip(ids, forced, strict=True), key=lambda pair: pair[1]):
        out.append(Span("forced" if is_forced else "sampled", codec.decode([token for token, _ in run])))
    return tuple(out)
