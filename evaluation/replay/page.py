"""The page of a replay: examples of stops in the viewer of trace files, harmful ones first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ...controller.text.answers import extract_answer
from ...controller.trace import Usage
from ...errors import OptionError
from ...io import check_writable
from ..html_page import is_page_by
from ..view.page import GENERATOR, trace_page
from ..view.record import RunView, SegmentView, TraceRecord
from .run import ReplayedRow, Stop

EXAMPLES = 12  # examples of one set and arm


def check_page(path: Path) -> None:
    """Refuse a place where a page cannot or should not be written; raises WriteError, OptionError."""
    check_writable(path, "--page")
    if path.exists() and not is_page_by(path, GENERATOR):
        raise OptionError(
            f"--page {path} was not written by tersely; accepted: a new file, or a page of tersely",
            code="overwrites_other_file",
        )


def replay_page(parts: Sequence[tuple[str, Sequence[ReplayedRow]]]) -> str:
    """The page with examples of each part, which is a set under an arm with its name."""
    records = []
    for name, found in parts:
        stopped = ((one, one.stop) for one in sorted(found, key=_harm) if one.stop is not None)
        records += [_make_record(name, one, stop) for one, stop in islice(stopped, EXAMPLES)]
    return trace_page(records, "replay")


def _harm(one: ReplayedRow) -> int:
    return one.right_controlled - one.right_full


def _make_record(name: str, one: ReplayedRow, stop: Stop) -> TraceRecord:
    """The stopped run next to the recorded one; the id states the verdict, since the viewer compares text."""
    verdict = {-1: "lost", 1: "repaired"}.get(_harm(one), "right" if one.right_full else "wrong")
    full = RunView(
        answer=extract_answer(one.row.answer),
        tier="recorded",
        finish_reason="stop",
        usage=Usage(thinking=one.tokens),
        segments=_segments(one.row.thinking, one.row.answer),
    )
    return TraceRecord(
        version=1,
        id=f"{name}: {one.row.id}, {verdict}" + ("" if one.row.gold is None else f" ({one.row.gold} is right)"),
        question=one.row.question,
        answer=stop.answer,
        tier="recorded",
        finish_reason=f"stopped by {stop.decision.policy}",
        usage=Usage(thinking=stop.tokens),
        segments=_segments(stop.thinking, stop.answer),
        decisions=(replace(stop.decision, text="", acted=True),),
        uncontrolled=full,
    )


def _segments(thinking: str, answer: str) -> tuple[SegmentView, ...]:
    parts = ((thinking, True), (answer, False))
    return tuple(SegmentView(kind="kept", text=text, thinking=inside) for text, inside in parts if text)
