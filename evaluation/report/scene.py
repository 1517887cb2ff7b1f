"""A chart as plain shapes at their places, in pixels from the top left: what the page and the pictures both draw.

A role says what a shape stands for; its colour is a variable of that name in the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["ink", "soft", "rule", "baseline", "judged", "other", "cut", "curve"]
Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SceneLine:
    """A line through points."""

    points: Sequence[Point]
    role: Role
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A disc, or a ring if it is hollow; the tip is what hovering over it tells."""

    x: float
    y: float
    radius: float
    role: Role
    hollow: bool = False
    tip: str = ""


@dataclass(frozen=True, slots=True)
class SceneText:
    """A line of text; (x, y) is the end that the anchor names, at half the height of small letters."""

    x: float
    y: float
    text: str
    role: Role = "soft"
    anchor: Anchor = "start"
    bold: bool = False


Item = SceneLine | Dot | SceneText


@dataclass(slots=True)
class Scene:
    """A chart: size of the canvas and of its letters in pixels, what it shows in a sentence, its shapes."""

    width: float
    height: float
    letter: float
    about: str
    items: list[Item] = field(default_factory=list)
