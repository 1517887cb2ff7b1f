"""Trace files with one record per line: a generation's text by origin, its decisions, and the uncontrolled run.

The schema is versioned, and unknown fields are refused. Reading names the line of an error, and appending writes all
or nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...controller.trace import Decision, GenerationResult, Span, Usage
from ...errors import TerselyError
from ...io import WriteError, append_line
from ...validation import FrozenModel, format_validation_error
from ..trace_analysis import final_answer

VERSION: Literal[1] = 1
SegmentKind = Literal["kept", "forced", "trimmed", "delegated"]
_KINDS: Mapping[str, SegmentKind] = {"sampled": "kept", "forced": "forced", "delegated": "delegated"}


class RecordModel(FrozenModel):
    """A part of a record; it converts nothing."""

    model_config = ConfigDict(strict=True)


class SegmentView(RecordModel):
    """A run of text of one kind. Trimmed text was sampled and then removed, so it is not part of the output."""

    kind: SegmentKind
    text: str
    thinking: bool


class TokenView(RecordModel):
    """One output token, with the entropy (in nats) of its distribution and probe values by name.

    A token that ends within a character has an empty text; the character belongs to the token that completes it.
    """

    text: str
    entropy: float | None = None
    probe: dict[str, float] | None = None


class RunView(RecordModel):
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


class RequestInfo(RecordModel):
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
    gold: str | None = None,
    name: str | None = None,
    probe: Mapping[str, Sequence[float]] | None = None,
) -> TraceRecord:
    """Build the record of a generation; without a tokenizer (`codec`) no tokens are recorded.

    `name` is the record's id, by default a hash of question and output. `probe` holds one value per output token.
    """
    run = _build_run(generation, codec, probe)
    return TraceRecord(
        version=VERSION,
        id=name or hashlib.sha256(f"{question}\0{generation.text}".encode()).hexdigest()[:12],
        question=question,
        gold=gold,
        uncontrolled=None if uncontrolled is None else _build_run(uncontrolled, codec),
        **dict(run),
    )


def _build_run(
    generation: GenerationResult,
    codec: TokenizerAdapter | None = None,
    probe: Mapping[str, Sequence[float]] | None = None,
) -> RunView:
    return RunView(
        answer=final_answer(generation),
        tier=generation.tier,
        finish_reason=generation.finish_reason,
        usage=generation.usage,
        segments=tuple(_split_segments(generation)),
        tokens=() if codec is None else tuple(_build_tokens(generation, codec, probe or {})),
        decisions=generation.trace,
    )


def _get_spans(generation: GenerationResult) -> Sequence[Span]:
    return generation.spans or (Span("sampled", generation.text),)


def _split_segments(generation: GenerationResult) -> Iterator[SegmentView]:
    """Split the spans where thinking ends; the closing marker belongs to the thinking."""
    spans = _get_spans(generation)
    left = _thinking_length("".join(span.text for span in spans), generation)
    for span in spans:
        for text, thinking in ((span.text[:left], True), (span.text[left:], False)):
            if text:
                yield SegmentView(kind=_KINDS[span.kind], text=text, thinking=thinking)
        left = max(0, left - len(span.text))


def _thinking_length(text: str, generation: GenerationResult) -> int:
    """Return how many characters of an output precede its answer."""
    if not generation.usage.thinking:
        return 0
    start = text.rfind(generation.answer) if generation.answer else -1
    return len(text) if start < 0 else start


def _build_tokens(
    generation: GenerationResult, codec: TokenizerAdapter, probe: Mapping[str, Sequence[float]]
) -> Iterator[TokenView]:
    texts = _token_texts(generation, codec)
    signals = generation.signals or (None,) * len(texts)
    for name, column in probe.items():
        if len(column) != len(texts):
            raise ValueError(f"got {len(column)} values of {name!r} for {len(texts)} tokens; accepted: one per token")
    for i, (text, signal) in enumerate(zip(texts, signals, strict=False)):  # there may be no texts
        values = {name: float(column[i]) for name, column in probe.items()}
        yield TokenView(text=text, entropy=None if signal is None else signal.entropy, probe=values or None)


def _token_texts(generation: GenerationResult, codec: TokenizerAdapter) -> list[str]:
    """Return the text of each token; none at all if together they do not spell the output."""
    spans, ids, texts = _get_spans(generation), generation.token_ids, list[str]()
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


# -- files -------------------------------------------------------------------------------------------------------------

_HINT = "accepted: one record per line, as written by `tersely run PROMPT --trace FILE`"


class TraceError(TerselyError, ValueError):
    """A trace file cannot be read, or a line of it is not a record."""

    code = "invalid_trace"


def load_records(path: Path) -> list[TraceRecord]:
    """Load all records of a trace file in order; blank lines are skipped. Raises TraceError."""
    records = list(_iterate_records(path))
    if not records:
        raise TraceError(f"{path} holds no records; {_HINT}", code="empty_trace")
    return records


def _iterate_records(path: Path) -> Iterator[TraceRecord]:
    if not path.exists():
        raise TraceError(f"trace file {str(path)!r} does not exist; {_HINT}", code="no_such_file")
    if path.is_dir():
        raise TraceError(f"{path} is a folder; accepted: a trace file", code="not_a_file")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield parse_record(line.removeprefix(b"\xef\xbb\xbf"), f"{path}, line {number}")
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None


def parse_record(line: bytes, source: str) -> TraceRecord:
    """Parse one line; raises TraceError, whose message begins with the source."""
    try:
        return TraceRecord.model_validate_json(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        message = f"{source}: not UTF-8 text (byte {error.start} of the line); save it as UTF-8"
        raise TraceError(message, code="not_utf8") from None
    except ValidationError as error:
        raise _explain(error, source) from None


def _explain(error: ValidationError, source: str) -> TraceError:
    """Build the error for an invalid record; another version explains everything else that is wrong."""
    for details in error.errors(include_url=False):
        if details["loc"] == ("version",) and details["type"] == "literal_error":
            message = f"version is {details['input']!r}; accepted: {VERSION}; update tersely or the file"
            return TraceError(f"{source}: {message}", code="unsupported_version")
        if not details["loc"] and details["type"] in ("json_invalid", "model_type"):
            return TraceError(f"{source}: {format_validation_error(error)}; {_HINT}", code="not_a_record")
    return TraceError(f"{source}: {format_validation_error(error, TraceRecord)}")


def check_appendable(path: Path) -> None:
    """Refuse a place where no record can be appended, before any work is done; raises TraceError or WriteError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise WriteError(f"--trace {path} cannot be written; accepted: a file, new or a trace, in a folder that exists")
    if path.is_file() and path.stat().st_size and next(_iterate_records(path), None) is None:
        raise TraceError(f"--trace {path} is not a trace; accepted: a file, new or a trace", code="empty_trace")
    target = path if path.exists() else path.absolute().parent
    if not os.access(target, os.W_OK):
        raise WriteError(f"--trace {path} cannot be written: no permission; choose another place")


def append_record(path: Path, record: TraceRecord) -> None:
    """Append a record as one line, all or nothing; raises WriteError."""
    append_line(path, record.model_dump_json(exclude_none=True).encode())
