"""The command `tersely view`: an HTML page of a trace file, with each record's text by origin, and its decisions.

Offsets count characters of a run's output, and positions its tokens.
"""

from __future__ import annotations

import re
import webbrowser
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from ..controller.options import flag
from ..controller.text.answers import normalize_answer
from ..controller.trace import Decision
from ..errors import OptionError
from ..io import check_replaceable, check_writable, write
from .cli_utils import is_page_by, render_page
from .tasks.questions import is_right
from .trace_record import RunView, SegmentKind, TraceRecord, load_records

GENERATOR = "tersely view"
_TELLING = ("note", "tier", "error")  # actions that change no text
_ENDINGS: Mapping[str, str] = {
    "stop": "ended by itself",
    "length": "cut off at the token limit",
    "content_filter": "withheld by the server's filter",
}
_WORD_END = re.compile(r"\s|$")


class Piece(NamedTuple):
    """A piece of a run: text of one kind, the mark of a decision (by its number), or where two runs diverge."""

    kind: SegmentKind | Literal["decision", "divergence"]
    text: str = ""
    number: int = 0


class PlacedDecision(NamedTuple):
    """A decision with its place in the text; without recorded tokens the place may be an estimate."""

    decision: Decision
    offset: int
    exact: bool


@dataclass(frozen=True, slots=True)
class RunDisplay:
    """A run as the page shows it; `thinking` and `answer` are its text in pieces, and `ending` says how it ended."""

    run: RunView
    right: bool | None
    ending: str
    decisions: Sequence[PlacedDecision]
    thinking: Sequence[Piece]
    answer: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class RecordDisplay:
    """A record as the page shows it."""

    record: TraceRecord
    controlled: RunDisplay
    uncontrolled: RunDisplay | None

    @property
    def runs(self) -> list[tuple[str, RunDisplay]]:
        runs = [("controlled", self.controlled)]
        return runs if self.uncontrolled is None else [*runs, ("uncontrolled", self.uncontrolled)]

    @property
    def saving(self) -> float | None:
        """The share of the uncontrolled run's tokens that was saved."""
        if self.uncontrolled is None or not self.uncontrolled.run.usage.total:
            return None
        return 1 - self.controlled.run.usage.total / self.uncontrolled.run.usage.total

    @property
    def same_answer(self) -> bool | None:
        """Whether both runs give the same answer."""
        if self.uncontrolled is None:
            return None
        return normalize_answer(self.uncontrolled.run.answer) == normalize_answer(self.record.answer)

    @property
    def tags(self) -> list[str]:
        """The filters that this record passes."""
        acted = any(d.acted and d.action not in _TELLING for d in self.record.decisions)
        checks = {
            "acted": acted,
            "untouched": not acted,
            "other": self.same_answer is False,
            "wrong": self.controlled.right is False,
            "longer": self.saving is not None and self.saving < 0,
        }
        return [tag for tag, passed in checks.items() if passed]


def trace_page(records: Sequence[TraceRecord], name: str) -> str:
    """Build the page of records; `name` is usually the trace file's name."""
    return render_page(
        "view",
        generator=GENERATOR,
        title=name.encode(errors="replace").decode(),  # file names may contain invalid UTF-8
        records=[display_record(record) for record in records],
    )


def display_record(record: TraceRecord) -> RecordDisplay:
    """Lay out a record for the page."""
    other, divergence = record.uncontrolled, None
    if other is not None and record.output != other.output:
        pairs = zip(record.output, other.output, strict=False)
        divergence = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return RecordDisplay(
        record,
        _display_run(record, record.gold, divergence),
        None if other is None else _display_run(other, record.gold, divergence),
    )


def _display_run(run: RunView, gold: str | None, divergence: int | None) -> RunDisplay:
    starts = list(accumulate((len(token.text) for token in run.tokens), initial=0)) if run.tokens else None
    if divergence is not None and starts is not None:
        divergence = starts[bisect_right(starts, divergence) - 1]  # where its token begins
    decisions = [_place_decision(run, decision, starts) for decision in run.decisions]
    pieces = list(_split_pieces(run, decisions, divergence))
    return RunDisplay(
        run,
        None if gold is None else is_right(normalize_answer(run.answer), gold),
        describe_ending(run),
        decisions,
        [piece for piece, thinking in pieces if thinking],
        [piece for piece, thinking in pieces if not thinking],
    )


def describe_ending(run: RunView) -> str:
    """What ended a run, and its thinking if a policy did."""
    ending = _ENDINGS.get(run.finish_reason, run.finish_reason)
    closing = next((one for one in run.decisions if one.acted and one.action == "close"), None)
    if closing is None:
        return ending
    closed = f"thinking closed by {closing.policy}"
    return closed if run.finish_reason == "stop" else f"{closed}, {ending}"


def _place_decision(run: RunView, decision: Decision, starts: Sequence[int] | None) -> PlacedDecision:
    """Place a decision by the tokens, or else at the end of a word, in proportion to the tokens of the run."""
    if starts is not None:
        return PlacedDecision(decision, starts[min(decision.position, len(starts) - 1)], exact=True)
    output, tokens = run.output, run.usage.thinking + run.usage.answer
    match = _WORD_END.search(output, min(len(output), len(output) * decision.position // max(tokens, 1)))
    return PlacedDecision(decision, match.start() if match else len(output), exact=False)


def _split_pieces(
    run: RunView, decisions: Sequence[PlacedDecision], divergence: int | None
) -> Iterator[tuple[Piece, bool]]:
    """Split the text at its marks; yield each piece and whether it is part of the thinking."""
    marks = [(placed.offset, Piece("decision", number=number)) for number, placed in enumerate(decisions, 1)]
    if divergence is not None:
        marks.insert(0, (divergence, Piece("divergence")))
    marks.sort(key=lambda mark: mark[0])
    offset, thinking = 0, True
    for segment in run.segments:
        thinking, text, start = segment.thinking, segment.text, offset
        end = offset if segment.kind == "trimmed" else offset + len(text)
        while marks and (marks[0][0] < end or marks[0][0] == start):
            place, mark = marks.pop(0)
            if before := text[: place - offset]:
                yield Piece(segment.kind, before), thinking
            yield mark, thinking
            text, offset = text[place - offset :], place
        if text:
            yield Piece(segment.kind, text), thinking
        offset = end
    yield from ((mark, thinking) for _, mark in marks)


def view(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file written by `tersely run --trace`.")],
    out: Annotated[
        Path | None, flag("The page to write; by default next to the trace, ending in .html.", show_default=False)
    ] = None,
    open_it: Annotated[bool, flag("Open the page in the browser.", "--open")] = False,
    force: Annotated[bool, flag("Overwrite a file that tersely did not write.", "--force")] = False,
) -> None:
    """Show a trace file as one self-contained HTML page."""
    records = load_records(trace)
    target = trace.with_suffix(".html") if out is None else out
    _check_target(target, trace, force)
    write(target, trace_page(records, trace.name))
    typer.echo(f"{target}: {len(records)} record{'s' if len(records) > 1 else ''}")
    if open_it and not webbrowser.open(target.resolve().as_uri()):
        typer.echo(f"could not start a browser; open {target} yourself", err=True)


def _check_target(target: Path, trace: Path, force: bool) -> None:
    check_writable(target)
    if not target.exists():
        return
    if not target.is_file():
        raise OptionError(f"{target} is a device or a pipe; accepted: a file; choose one with --out", code="not_a_file")
    if target.samefile(trace):
        message = f"{target} is the trace itself; accepted: another file; choose one with --out"
        raise OptionError(message, code="overwrites_trace")
    check_replaceable(target, lambda path: force or is_page_by(path, GENERATOR), otherwise=", or any with --force")
