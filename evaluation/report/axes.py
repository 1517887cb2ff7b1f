"""Scales from values to pixels, round ticks, and the frame that a chart stands in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .scene import Item, SceneLine, SceneText

Tick = tuple[float, str]
"""A value and what is written at it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps low..high to start..end, straight or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values within the scale, so many at most."""
        if not self.log:
            return linear_ticks(self.low, self.high, most)
        leads = next((leads for leads in _LEADS if len(list(_decades(self.low, self.high, leads))) <= most), (1,))
        found = list(_decades(self.low, self.high, leads))
        if len(found) < min(3, most):
            # Within less than a decade round steps say more than powers.
            return linear_ticks(self.low, self.high, most)
        return found[:: math.ceil(len(found) / most)]


_LEADS = ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
"""First digits of the ticks within a decade, from many to few."""


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten from low to high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * lead for lead in (1, 2, 2.5, 5, 10) if power * lead >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _decades(low: float, high: float, leads: Sequence[int]) -> Iterator[float]:
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (value for lead in leads if low <= (value := lead * 10.0**power) <= high)


@dataclass(frozen=True, slots=True)
class Frame:
    """The inside of a chart with its two scales; y grows upwards. `left` is where the room for it begins."""

    x: Scale
    y: Scale
    left: float = 0.0

    def grid(
        self, x_title: str, y_title: str, letter: float, x_ticks: Sequence[Tick], y_ticks: Sequence[Tick]
    ) -> Iterator[Item]:
        """Rules at the y ticks, names at all ticks, titles where they are read first: above and below at the right."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        for value, name in y_ticks:
            yield SceneLine(((left, self.y(value)), (right, self.y(value))), "rule")
            yield SceneText(left - 8, self.y(value), name, anchor="end")
        yield SceneLine(((left, bottom), (right, bottom)), "soft")
        for value, name in x_ticks:
            yield SceneLine(((self.x(value), bottom), (self.x(value), bottom + 5)), "soft")
            yield SceneText(self.x(value), bottom + 6 + letter * 0.8, name, anchor="middle")
        yield SceneText(self.left, top - letter * 1.5, y_title, "ink")
        yield SceneText(right, bottom + letter * 2.9, x_title, "ink", "end")


def named(values: Sequence[float], name: Callable[[float], str]) -> list[Tick]:
    """Ticks with their names."""
    return [(value, name(value)) for value in values]


def grouped(value: float) -> str:
    """A tick with its thousands set apart and no more decimals than it has."""
    return f"{value:,.10g}"


def hundredfold(value: float) -> str:
    """A share of 1 in percent, without the sign."""
    return grouped(100 * value)
