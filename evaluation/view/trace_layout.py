"""From records to what the page shows: text in pieces, the places of decisions, where two runs part.

The page's script draws and computes no place: all are found here. Offsets count characters of a run's output, trimmed
text left out; positions count its tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ...controller.text.answers import normalize_answer
from ..tasks.questions import is_right
from .record import RunView, TraceRecord

Data = dict[str, Any]
_GAP = re.compile(r"\s|$")


def record_data(record: TraceRecord) -> Data:
    """What the page knows of a record; `same` tells whether both runs answer alike."""
    other = record.uncontrolled
    parting = None
    if other is not None and record.output != other.output:
        parting = _agreement(record.output, other.output)
    return {
        "id": record.id,
        "question": record.question,
        "gold": record.gold,
        "controlled": run_data(record, record.gold, parting),
        "uncontrolled": None if other is None else run_data(other, record.gold, parting),
        "same": None if other is None else normalize_answer(other.answer) == normalize_answer(record.answer),
    }


def _agreement(one: str, other: str) -> int:
    """How many first characters are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def run_data(run: RunView, gold: str | None, parting: int | None) -> Data:
    """What the page knows of a run; `parting` is the offset from which another run of the prompt differs."""
    ruler = _Layout(run)
    if parting is not None and ruler.starts is not None:
        parting = ruler.starts[bisect_right(ruler.starts, parting) - 1]
    places = list(_places(run, ruler))
    decisions = [
        {
            "policy": d.policy,
            "action": d.action,
            "reason": d.reason,
            "position": d.position,
            "text": d.text,
            "acted": d.acted,
            "at": ruler.position(place),
            "exact": exact,
        }
        for d, (place, exact) in zip(run.decisions, places, strict=True)
    ]
    return {
        "answer": run.answer,
        "right": is_right(normalize_answer(run.answer), gold) if gold is not None else None,
        "tier": run.tier,
        "finish": run.finish_reason,
        "usage": run.usage.as_dict(),
        "tokens": len(run.tokens),
        "entropy": _column([token.entropy for token in run.tokens]),
        "probe": _probe_columns(run),
        "segments": list(_segments(run, ruler, [place for place, _ in places], parting)),
        "decisions": decisions,
    }


def _column(values: Sequence[float | None]) -> list[float | None] | None:
    """Values as short as a picture needs them; None if there are none at all."""
    if all(value is None for value in values):
        return None
    return [None if value is None else round(value, 4) for value in values]


def _probe_columns(run: RunView) -> dict[str, list[float | None] | None]:
    names = dict.fromkeys(name for token in run.tokens for name in token.probe or {})
    return {name: _column([(token.probe or {}).get(name) for token in run.tokens]) for name in names}


class _Layout:
    """Between offsets and positions of one run: exact if its tokens are known, otherwise in proportion."""

    def __init__(self, run: RunView) -> None:
        self.output = run.output
        self.starts = list(accumulate((len(token.text) for token in run.tokens), initial=0)) if run.tokens else None
        thinking = sum(len(s.text) for s in run.segments if s.thinking and s.kind != "trimmed")
        usage = run.usage
        self._knots = [(0, 0), (thinking, usage.thinking), (len(self.output), usage.thinking + usage.answer)]

    def position(self, offset: int) -> float:
        """The token that an offset lies at."""
        if self.starts is not None:
            return bisect_left(self.starts, offset)
        return _between(self._knots, offset)

    def offset(self, position: int) -> int:
        """Where a token starts; without tokens a gap between words near by."""
        if self.starts is not None:
            return self.starts[min(position, len(self.starts) - 1)]
        near = int(_between([(y, x) for x, y in self._knots], position))
        found = _GAP.search(self.output, near)
        return found.start() if found else len(self.output)

    def token(self, offset: int) -> int | None:
        """The token that holds an offset; None where tokens are not known."""
        return None if self.starts is None else bisect_right(self.starts, offset) - 1

    def cuts(self, start: int, end: int, marked: Iterable[int]) -> list[int]:
        """Where text from `start` to `end` falls into pieces: at each token, or only where something is marked.

        A token without text makes an empty piece, so that pieces and tokens keep step.
        """
        inner = sorted(set(marked)) if self.starts is None else self.starts
        return [start, *inner[bisect_right(inner, start) : bisect_left(inner, end)], end]


def _between(knots: Sequence[tuple[float, float]], x: float) -> float:
    """Linear interpolation; the ends are held."""
    for (x0, y0), (x1, y1) in pairwise(knots):
        if x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return knots[-1][1]


def _places(run: RunView, ruler: _Layout) -> Iterator[tuple[int, bool]]:
    """The offset of each decision and whether it is exact, by tokens or else by the text that was put in."""
    offset, put_in = 0, list[tuple[int, str]]()
    for segment in run.segments:
        if segment.kind in ("forced", "delegated"):
            put_in.append((offset, segment.text))
        offset += 0 if segment.kind == "trimmed" else len(segment.text)
    for decision in run.decisions:
        found = None
        if ruler.starts is None and decision.acted and decision.text:
            found = next((i for i, (_, text) in enumerate(put_in) if _fits(text, decision.text)), None)
        if found is None:
            yield ruler.offset(decision.position), ruler.starts is not None
        else:
            yield put_in[found][0], True
            del put_in[: found + 1]


def _fits(segment: str, text: str) -> bool:
    """Whether a segment holds what a decision put in, which may have been cut off at the token limit."""
    return segment.startswith(text) or text.startswith(segment)


def _segments(run: RunView, ruler: _Layout, places: Sequence[int], parting: int | None) -> Iterator[Data]:
    """Segments as runs of pieces; `marks` tells which decisions stand before which piece, `parting` before which one
    the runs part.

    `token` is the token of the first piece. Each piece is one token, or the part of one that a segment's edge cut off.
    """
    waiting = sorted(range(len(places)), key=places.__getitem__)
    marked = [*places] if parting is None else [*places, parting]
    offset = 0
    for i, segment in enumerate(run.segments):
        trimmed, last = segment.kind == "trimmed", i == len(run.segments) - 1
        end = offset if trimmed else offset + len(segment.text)
        cuts = [offset, offset] if trimmed else ruler.cuts(offset, end, marked)
        texts = [segment.text] if trimmed else [segment.text[a - offset : b - offset] for a, b in pairwise(cuts)]
        marks: dict[int, list[int]] = {}
        while waiting and (last or places[waiting[0]] < end or (trimmed and places[waiting[0]] == end)):
            number = waiting.pop(0)
            marks.setdefault(0 if trimmed else bisect_left(cuts, places[number]), []).append(number)
        parts_here = parting is not None and not trimmed and (offset <= parting < end or (last and parting == end))
        yield {
            "kind": segment.kind,
            "thinking": segment.thinking,
            "start": ruler.position(offset),
            "end": ruler.position(end),
            "token": None if trimmed else ruler.token(offset),
            "pieces": texts,
            "marks": marks,
            "parting": bisect_left(cuts, parting) if parting is not None and parts_here else None,
        }
        offset = end
