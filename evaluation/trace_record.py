"""Trace files with one record per line: a generation's text by origin, its decisions, and the uncontrolled run.

The schema is versioned and strict; reading names the line of an error, and appending writes all or nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.text.tokenizer_adapter import TokenizerAdapter
from ..controller.trace import Decision, GenerationResult, Span, Usage
from ..errors import TerselyError
from ..io import append_line, check_writable
from ..validation import ExactModel, format_validation_error, read_lines

VERSION: Literal[1] = 1
SegmentKind = Literal["kept", "forced", "trimmed", "delegated"]
_KINDS: Mapping[str, SegmentKind] = {"sampled": "kept", "forced": "forced", "delegated": "delegated"}


class SegmentView(ExactModel):
    """A run of text of one kind. Trimmed text was sampled and then removed, so it is not part of the output."""

    kind: SegmentKind
    text: str
    thinking: bool


class TokenView(ExactModel):
    """One output token, with its entropy in nats; empty if the next ones complete its character."""

    text: str
    entropy: float | None = None


class RunView(ExactModel):
    """One run of a prompt. If `tokens` are given, they spell the output, and positions of decisions count them."""

    answer: str
    tier: str
    finish_reason: str
    usage: Usage
    segments: tuple[SegmentView, ...]
    tokens: tuple[TokenView, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def output(self) -> str:
        """The text after the prompt, without what was trimmed."""
        return "".join(s.text for s in self.segments if s.kind != "trimmed")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if min(asdict(self.usage).values()) < 0 or min((d.position for d in self.decisions), default=0) < 0:
            raise ValueError("a token count or a position is negative; accepted: 0 or more")
        if self.tokens and "".join(t.text for t in self.tokens) != self.output:
            raise ValueError("the texts of 'tokens' and 'segments' differ; accepted: the same, without trimmed ones")
        return self


class RequestInfo(ExactModel):
    """The question, and the right answer if it is known."""

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
) -> TraceRecord:
    """Build the record of a generation; without a tokenizer (`codec`) no tokens are recorded."""
    return TraceRecord(
        version=VERSION,
        id=hashlib.sha256(f"{question}\0{generation.text}".encode()).hexdigest()[:12],
        question=question,
        uncontrolled=None if uncontrolled is None else _build_run(uncontrolled, codec),
        **dict(_build_run(generation, codec)),
    )


def _build_run(generation: GenerationResult, codec: TokenizerAdapter | None) -> RunView:
    texts = [] if codec is None else _token_texts(generation, codec)
    entropies = [None if signal is None else signal.entropy for signal in generation.signals] or [None] * len(texts)
    return RunView(
        answer=normalize_answer(extract_answer(generation.answer)),
        tier=generation.tier,
        finish_reason=generation.finish_reason,
        usage=generation.usage,
        segments=tuple(_split_segments(generation)),
        tokens=tuple(TokenView(text=text, entropy=at) for text, at in zip(texts, entropies, strict=False)),
        decisions=generation.trace,
    )


def _split_segments(generation: GenerationResult) -> Iterator[SegmentView]:
    """Split the spans where thinking ends; the closing marker belongs to the thinking."""
    spans = generation.spans or (Span("sampled", generation.text),)
    output = "".join(span.text for span in spans)
    start = output.rfind(generation.answer) if generation.answer else -1
    left = 0 if not generation.usage.thinking else len(output) if start < 0 else start
    for span in spans:
        for text, thinking in ((span.text[:left], True), (span.text[left:], False)):
            if text:
                yield SegmentView(kind=_KINDS[span.kind], text=text, thinking=thinking)
        left = max(0, left - len(span.text))


def _token_texts(generation: GenerationResult, codec: TokenizerAdapter) -> list[str]:
    """Return the text of each token; none at all if together they do not spell the output."""
    spans = generation.spans or (Span("sampled", generation.text),)
    ids, texts = generation.token_ids, list[str]()
    for span in spans:
        texts += _decode_pieces(ids[len(texts) :], span.text, codec)
    complete = len(texts) == len(ids) and "".join(texts) == "".join(span.text for span in spans)
    return texts if complete else []


def _decode_pieces(ids: Sequence[int], wanted: str, codec: TokenizerAdapter) -> list[str]:
    """Return what each of the first tokens adds to the text `wanted`, which was decoded as a whole.

    A token is decoded with its predecessors: alone it may lose a leading space, or be only a part of a character.
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
        texts[-1] += wanted[length:]  # a character that was never completed
    return texts


_HINT = "accepted: one record per line, as written by `tersely run PROMPT --trace FILE`"


class TraceError(TerselyError, ValueError, code="invalid_trace"):
    """A trace file cannot be read, or a line of it is not a record."""


def load_records(path: Path) -> list[TraceRecord]:
    """Load all records of a trace file in order; blank lines are skipped. Raises TraceError."""
    records = [parse_record(line, source) for source, line in read_lines(path, TraceError)]
    if not records:
        raise TraceError(f"{path} holds no records; {_HINT}", code="empty_trace")
    return records


def parse_record(line: str, source: str) -> TraceRecord:
    """Parse one line; raises TraceError, whose message begins with the source."""
    try:
        return TraceRecord.model_validate_json(line)
    except ValidationError as error:
        failure = error
    for details in failure.errors(include_url=False):
        if details["loc"] == ("version",) and details["type"] == "literal_error":  # it explains all else that is wrong
            message = f"version is {details['input']!r}; accepted: {VERSION}; update tersely or the file"
            raise TraceError(f"{source}: {message}", code="unsupported_version")
        if not details["loc"] and details["type"] in ("json_invalid", "model_type"):
            raise TraceError(f"{source}: {format_validation_error(failure)}; {_HINT}", code="not_a_record")
    raise TraceError(f"{source}: {format_validation_error(failure, TraceRecord)}")


def check_appendable(path: Path) -> None:
    """Refuse a place where no record can be appended, before any work is done; raises TraceError or WriteError."""
    check_writable(path, "--trace")
    if path.is_file() and path.stat().st_size:
        for source, line in read_lines(path, TraceError):
            parse_record(line, source)
            return
        raise TraceError(f"--trace {path} is not a trace; accepted: a file, new or a trace", code="empty_trace")


def append_record(path: Path, record: TraceRecord) -> None:
    """Append a record as one line, all or nothing; raises WriteError."""
    append_line(path, record.model_dump_json(exclude_none=True).encode())
