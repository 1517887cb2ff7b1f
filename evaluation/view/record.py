"""The record of one generation in a trace file: what was written, what happened to it, the uncontrolled run beside it.

A closed, versioned schema; unknown keys are refused. The file around it is `files`, what is made of it for the page
`layout`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...controller.trace import Decision, GenerationResult, Span, Usage
from ..trace_analysis import final_answer

VERSION: Literal[1] = 1
Kind = Literal["kept", "forced", "trimmed", "delegated"]
_KINDS: Mapping[str, Kind] = {"sampled": "kept", "forced": "forced", "delegated": "delegated"}


class StrictView(BaseModel):
    """What all parts of a record share: nothing unknown, nothing converted, nothing edited, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SegmentView(StrictView):
    """A run of text of one kind. Trimmed text was sampled and taken back: it is no part of the output."""

    kind: Kind
    text: str
    thinking: bool


class TokenView(StrictView):
    """One output token; entropy in nats of the distribution it was drawn from, probe values by the probe's name."""

    text: str
    entropy: float | None = None
    probe: dict[str, float] | None = None


class RunView(StrictView):
    """One run of a prompt. `tokens`, if given, spell the output, so that positions, which count them, find their place.

    A token that ends within a character has an empty text; the character belongs to the token that completes it.
    """

    answer: str
    tier: str
    finish_reason: str
    usage: Usage
    segments: tuple[SegmentView, ...]
    tokens: tuple[TokenView, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def output(self) -> str:
        """All that was written after the prompt and stayed."""
        return "".join(s.text for s in self.segments if s.kind != "trimmed")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if min(asdict(self.usage).values()) < 0 or min((d.position for d in self.decisions), default=0) < 0:
            raise ValueError("a count of tokens or a position is negative; accepted: 0 or more")
        if self.tokens and "".join(t.text for t in self.tokens) != self.output:
            raise ValueError("'tokens' spell another text than 'segments'; accepted: the same, trimmed ones left out")
        return self


class RequestInfo(StrictView):
    """What was asked, and the right answer if it is known."""

    version: Literal[1]
    id: str = Field(min_length=1)
    question: str
    gold: str | None = None


class TraceRecord(RunView, RequestInfo):
    """One line of a trace file; `uncontrolled` is the same prompt without control."""

    uncontrolled: RunView | None = None


def build_record(
    generation: GenerationResult,
    question: str,
    uncontrolled: GenerationResult | None = None,
    *,
    codec: TokenizerAdapter | None = None,
    gold: str | None = None,
    name: str | None = None,
    probe: Mapping[str, Sequence[float]] | None = None,
) -> TraceRecord:
    """The record of a generation.

    codec: of the model's tokenizer; without it no tokens are recorded. probe: one value per output token.
    name: the record's id, by default a hash of what was asked and written.
    """
    run = build_run(generation, codec, probe)
    return TraceRecord(
        version=VERSION,
        id=name or hashlib.sha256(f"{question}\0{generation.text}".encode()).hexdigest()[:12],
        question=question,
        gold=gold,
        uncontrolled=None if uncontrolled is None else build_run(uncontrolled, codec),
        **dict(run),
    )


def build_run(
    generation: GenerationResult,
    codec: TokenizerAdapter | None = None,
    probe: Mapping[str, Sequence[float]] | None = None,
) -> RunView:
    """The part of a record that tells one run; see `build_record`."""
    return RunView(
        answer=final_answer(generation),
        tier=generation.tier,
        finish_reason=generation.finish_reason,
        usage=generation.usage,
        segments=tuple(_segments(generation)),
        tokens=() if codec is None else tuple(_tokens(generation, codec, probe or {})),
        decisions=generation.trace,
    )


def _spans(generation: GenerationResult) -> Sequence[Span]:
    return generation.spans or (Span("sampled", generation.text),)


def _segments(generation: GenerationResult) -> Iterator[SegmentView]:
    """The spans, cut where thinking ends; a marker belongs to the thinking, as in `parts.split_output`."""
    spans = _spans(generation)
    left = _thinking_length("".join(span.text for span in spans), generation)
    for span in spans:
        kind = _KINDS[span.kind]
        for text, thinking in ((span.text[:left], True), (span.text[left:], False)):
            if text:
                yield SegmentView(kind=kind, text=text, thinking=thinking)
        left = max(0, left - len(span.text))


def _thinking_length(text: str, generation: GenerationResult) -> int:
    """Characters of an output before its answer."""
    if not generation.usage.thinking:
        return 0
    start = text.rfind(generation.answer) if generation.answer else -1
    return len(text) if start < 0 else start


def _tokens(
    generation: GenerationResult, codec: TokenizerAdapter, probe: Mapping[str, Sequence[float]]
) -> Iterator[TokenView]:
    texts = _texts(generation, codec)
    signals = generation.signals or (None,) * len(texts)
    for name, column in probe.items():
        if len(column) != len(texts):
            raise ValueError(f"{len(column)} values of {name!r} for {len(texts)} tokens; accepted: one for each")
    for i, (text, signal) in enumerate(zip(texts, signals, strict=False)):  # no texts, where they spell nothing
        values = {name: float(column[i]) for name, column in probe.items()}
        yield TokenView(text=text, entropy=None if signal is None else signal.entropy, probe=values or None)


def _texts(generation: GenerationResult, codec: TokenizerAdapter) -> list[str]:
    """The text of each token; none at all if they cannot be made to spell the spans."""
    spans, ids, texts = _spans(generation), generation.token_ids, list[str]()
    for span in spans:
        texts += _pieces(ids[len(texts) :], span.text, codec)
    whole = len(texts) == len(ids) and "".join(texts) == "".join(span.text for span in spans)
    return texts if whole else []


def _pieces(ids: Sequence[int], wanted: str, codec: TokenizerAdapter) -> list[str]:
    """What each of the first tokens adds to the text that they spell, which was decoded in one go.

    A token is decoded with those before it: alone it may lose a leading space, or be a part of a character only.
    """
    texts, length, start, done = list[str](), 0, 0, 0
    for end in range(1, len(ids) + 1):
        text = codec.decode(ids[start:end])[len(codec.decode(ids[start:done])) :]
        if length + len(text) > len(wanted):
            break
        if text.endswith("\ufffd"):
            texts.append("")
            continue
        texts.append(text)
        length += len(text)
        start, done = done, end
    if texts:
        texts[-1] += wanted[length:]  # a character that never became whole
    return texts
