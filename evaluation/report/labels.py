"""Where the names of points go, so that they cover neither each other nor what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .scene import Anchor, Item, Point, SceneLine, SceneText

_LETTER = 0.6  # width of a letter as a share of the type's size: what a wide sans serif needs
_BOLD = 1.08
_LONGEST = 28  # letters of a name in a chart
_SIDES: Sequence[tuple[float, float, Anchor]] = (
    (1, 0, "start"),
    (-1, 0, "end"),
    (0.8, -0.6, "start"),
    (0.8, 0.6, "start"),
    (-0.8, -0.6, "end"),
    (-0.8, 0.6, "end"),
    (0, -1, "middle"),
    (0, 1, "middle"),
)
_STEP, _STEPS = 0.7, 18  # letters' sizes that a name moves away at a time, and how often at most
_COVERING, _FAR = 4.0, 1.0  # what it costs that a name covers a square pixel, or stands a pixel further away


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def nearest(self, x: float, y: float) -> Point:
        """The point in it that is nearest to another."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in it."""
        return self.nearest(x, y) == (x, y)


@dataclass(frozen=True, slots=True)
class Label:
    """A name and the points that it may stand at, best first, each with `gap` pixels kept free around it.

    own: what is drawn there for it, which a line that leads to the name may cross.
    """

    text: SceneText
    points: Sequence[Point]
    gap: float
    own: Sequence[Box] = ()


def short(name: str) -> str:
    """A name that fits a chart: one line of it, not too long."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def text_width(text: str, letter: float, *, bold: bool = False) -> float:
    """About how wide a text is."""
    return _LETTER * letter * len(text) * (_BOLD if bold else 1)


def text_box(text: SceneText, letter: float) -> Box:
    """About what a text covers."""
    width = text_width(text.text, letter, bold=text.bold)
    left = text.x - {"start": 0.0, "middle": width / 2, "end": width}[text.anchor]
    return Box(left, text.y - letter * 0.6, left + width, text.y + letter * 0.6)


def along(start: Point, end: Point, half: float = 2.0) -> Iterator[Box]:
    """What a slanted line covers: a chain of small boxes."""
    steps = max(1, int(math.dist(start, end)) // 4)
    for i in range(steps + 1):
        x, y = (a + (b - a) * i / steps for a, b in zip(start, end, strict=True))
        yield Box(x - half, y - half, x + half, y + half)


def place(labels: Sequence[Label], taken: Sequence[Box], inside: Box, letter: float) -> Iterator[Item]:
    """Every label, in the order given, as near to its point as it covers nothing; from afar a line leads to it.

    taken: what must not be covered. Where all is full a label covers what it must: none is left out.
    """
    boxes = [*taken, *(box for label in labels for box in label.own)]
    for label in labels:
        foreign = [box for box in boxes if box not in label.own]
        best = (math.inf, label.points[0], label.text)
        for away, point, text in _places(label, letter):
            if best[0] <= _FAR * away:
                break
            name = text_box(text, letter)
            covered = sum(name.overlap(box) for box in boxes) + name.overlap(name) - name.overlap(inside)
            cost = _FAR * away + _COVERING * covered
            if cost < best[0]:
                leader = _leader(label, point, name, letter)
                cost += sum(piece.overlap(box) for piece in leader for box in foreign)
                best = min(best, (cost, point, text), key=lambda found: found[0])
        _, point, text = best
        name = text_box(text, letter)
        leader = _leader(label, point, name, letter)
        boxes += [name, *leader]
        if leader:
            yield SceneLine((point, name.nearest(*point)), "soft", 0.75, dashed=True)
        yield text


def _places(label: Label, letter: float) -> Iterator[tuple[float, Point, SceneText]]:
    """Where a label may go, near its points and then further and further away: how far, from which point, the text."""
    for step in range(_STEPS):
        away = step * _STEP * letter
        reach = label.gap + away
        for x, y in label.points:
            for dx, dy, anchor in _SIDES:
                # Above and below, half of the name's own height comes on top.
                rise = dy * (reach + 0.6 * letter)
                yield away, (x, y), replace(label.text, x=x + dx * reach, y=y + rise, anchor=anchor)


def _leader(label: Label, point: Point, name: Box, letter: float) -> list[Box]:
    """What the line from a point to a name covers; nothing if the name is near enough to need none."""
    near = Box(name.left - letter, name.top - letter, name.right + letter, name.bottom + letter)
    if near.holds(*point) or any(near.overlap(box) for box in label.own):
        return []
    return list(along(point, name.nearest(*point)))
