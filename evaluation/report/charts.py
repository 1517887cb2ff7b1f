"""The three charts of a result, laid out for a wide and for a narrow page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .axes import Frame, Scale, grouped, hundredfold, linear_ticks, named
from .formatting import format_number, format_percent, plain, pluralize, tokens
from .labels import Box, Label, along, place, short, text_width
from .result import Cell, ReportArm, Result, levels
from .scene import Dot, Item, Point, Role, Scene, SceneLine, SceneText


@dataclass(frozen=True, slots=True)
class Size:
    """How much room a chart has: its width, the height of a panel, the size of its letters, its most x ticks."""

    width: float
    height: float
    letter: float
    ticks: int


WIDE = Size(860, 430, 13, 8)
NARROW = Size(343, 400, 12, 4)
_RANK: dict[Role, int] = {"cut": 0, "other": 1, "baseline": 2, "judged": 3}
"""Roles of arms; what matters most is drawn last, on top, and named first."""
_RADIUS = 6.0


def arm_role(arm: ReportArm, result: Result) -> Role:
    """What an arm stands for in a chart."""
    if arm.name in (result.baseline, result.judged):
        return "baseline" if arm.name == result.baseline else "judged"
    return "cut" if arm.kind == "cut" else "other"


# --- accuracy over tokens


def pareto(result: Result, size: Size) -> Scene | None:
    """Accuracy with its interval over mean total tokens; None where no arm has written anything."""
    arms = sorted((arm for arm in result.arms if arm.tokens.total > 0), key=lambda arm: _RANK[arm_role(arm, result)])
    if not arms:
        return None
    curve = [point for point in result.budget_curve if point.total > 0]
    frame = _pareto_frame(arms, [p.total for p in curve], [p.accuracy for p in curve], size)
    seen = "; ".join(f"{arm.name} {format_percent(arm.accuracy)} at {tokens(arm.tokens.total)} tokens" for arm in arms)
    about = f"Accuracy over mean total tokens of a question, tokens on a logarithmic scale: {seen}."
    scene = Scene(size.width, size.height, size.letter, about)
    scene.items += frame.grid(
        "Tokens a question, log scale",
        "Accuracy in %, with 95 % interval",
        size.letter,
        named(frame.x.ticks(size.ticks), grouped),
        named(linear_ticks(frame.y.low, frame.y.high, 10), hundredfold),
    )
    line = [(frame.x(p.total), frame.y(p.accuracy)) for p in curve]
    if line:
        tips = [f"budget of {p.budget:,}: {format_percent(p.accuracy)}, {tokens(p.total)} tokens" for p in curve]
        scene.items += [SceneLine(line, "curve", 1.5), *_dots(line, 2.5, "curve", tips)]
    for arm in arms:
        scene.items += _arm_mark(arm, arm_role(arm, result), frame)
    scene.items += _pareto_names(arms, line, frame, result, size.letter)
    return scene


def _pareto_frame(arms: Sequence[ReportArm], totals: Sequence[float], accuracies: Sequence[float], size: Size) -> Frame:
    xs = [arm.tokens.total for arm in arms] + list(totals)
    ys = [end for arm in arms for end in (*arm.accuracy_ci, arm.accuracy)] + list(accuracies)
    widen = (max(xs) / min(xs)) ** 0.07 * 1.05
    pad = 0.1 * max(max(ys) - min(ys), 0.05)
    return Frame(
        Scale(min(xs) / widen, max(xs) * widen, size.letter * 2.9, size.width - 4, log=True),
        Scale(max(0.0, min(ys) - pad), min(1.0, max(ys) + pad), size.height - size.letter * 3.6, size.letter * 2.4),
    )


def _arm_mark(arm: ReportArm, role: Role, frame: Frame) -> Iterator[Item]:
    x, (low, high) = frame.x(arm.tokens.total), arm.accuracy_ci
    yield SceneLine(((x, frame.y(low)), (x, frame.y(high))), role, 1.5 if role == "judged" else 1.0)
    tip = (
        f"{arm.name}: {format_percent(arm.accuracy)} ({plain(low)} to {plain(high)}), {tokens(arm.tokens.total)} tokens"
    )
    radius = _RADIUS if role == "judged" else _RADIUS - 1
    yield Dot(x, frame.y(arm.accuracy), radius, role, arm.kind == "cut", tip)


def _pareto_names(
    arms: Sequence[ReportArm], line: Sequence[Point], frame: Frame, result: Result, letter: float
) -> Iterator[Item]:
    taken = [box for start, end in pairwise(line) for box in along(start, end)]
    labels = list[Label]()
    for arm in reversed(arms):
        x, y = frame.x(arm.tokens.total), frame.y(arm.accuracy)
        low, high = map(frame.y, arm.accuracy_ci)
        own = (Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), Box(x - 2, high, x + 2, low))
        role = arm_role(arm, result)
        strong = role in ("baseline", "judged")
        text = SceneText(x, y, short(arm.name), role if strong else "soft", bold=strong)
        labels.append(Label(text, [(x, y)], _RADIUS + 4, own))
    if line:
        labels.append(Label(SceneText(0, 0, f"{short(result.baseline)}, fixed budgets", "curve"), line[::-1], 6))
    return place(labels, taken, Box(frame.x.start, frame.y.end, frame.x.end, frame.y.start), letter)


# --- by level


def by_level(result: Result, size: Size) -> Scene | None:
    """Accuracy and thinking tokens of each level, baseline against judged arm; None where there are no levels."""
    names = levels(result)
    if not names:
        return None
    wide = size.width > 600
    gap, height = 56.0, size.height * (0.86 if wide else 0.62)
    width = (size.width - gap) / 2 if wide else size.width
    about = (
        f"Accuracy and thinking tokens of {result.baseline} and {result.judged} on {pluralize(len(names), 'level')}; "
        "the numbers are in the table below."
    )
    scene = Scene(size.width, height if wide else 2 * height + 12, size.letter, about)
    second = (width + gap, 0.0) if wide else (0.0, height + 12)
    for what, (left, top) in (("accuracy", (0.0, 0.0)), ("thinking", second)):
        scene.items += _panel(result, names, what, Box(left, top, left + width, top + height), size.letter)
    return scene


def _panel(result: Result, names: Sequence[str], what: str, room: Box, letter: float) -> Iterator[Item]:
    share = what == "accuracy"
    arms = (result.base, result.judge)
    values = {arm.name: [_value(arm.per_level[name], what) for name in names] for arm in arms}
    most = 1.0 if share else 1.08 * max(1.0, *(v for column in values.values() for v in column))
    beside = 10 + max(text_width(short(arm.name), letter, bold=True) for arm in arms)
    start, end = room.left + letter * (2.9 if share else 3.6), room.right - min(beside, (room.right - room.left) / 3)
    frame = Frame(
        Scale(-0.3, len(names) - 0.7, start, end),
        Scale(0.0, most, room.bottom - letter * 3.6, room.top + letter * 2.4),
        room.left,
    )
    yield from frame.grid(
        "Level",
        "Accuracy in %" if share else "Thinking tokens a question",
        letter,
        _level_ticks(names, end - start, letter),
        named(frame.y.ticks(5), hundredfold if share else grouped),
    )
    for arm in arms:
        role = arm_role(arm, result)
        line = [(frame.x(i), frame.y(v)) for i, v in enumerate(values[arm.name])]
        said = [format_percent(v) if share else f"{tokens(v)} thinking tokens" for v in values[arm.name]]
        tips = [f"{arm.name}, level {name}: {text}" for name, text in zip(names, said, strict=True)]
        yield SceneLine(line, role, 2.0)
        yield from _dots(line, 4.0, role, tips)
    yield from _end_names(
        arms, [frame.y(values[arm.name][-1]) for arm in arms], frame.x(len(names) - 1) + 10, result, letter
    )


def _value(cell: Cell, what: str) -> float:
    return cell.accuracy if what == "accuracy" else cell.thinking


def _level_ticks(names: Sequence[str], width: float, letter: float) -> list[tuple[float, str]]:
    """Names of the levels, every second or third only where there is no room for more."""
    needed = max(text_width(short(name), letter) for name in names) + letter
    every = max(1, -int(-needed * len(names) // width))
    return [(i, short(name)) for i, name in enumerate(names) if i % every == 0]


def _end_names(
    arms: Sequence[ReportArm], heights: Sequence[float], x: float, result: Result, letter: float
) -> Iterator[SceneText]:
    """Names at the right ends of two lines, pushed apart where the lines end close together."""
    upper, lower = sorted(range(2), key=lambda i: heights[i])
    apart = max(0.0, letter * 1.3 - (heights[lower] - heights[upper])) / 2
    for i, y in ((upper, heights[upper] - apart), (lower, heights[lower] + apart)):
        yield SceneText(x, y, short(arms[i].name), arm_role(arms[i], result), bold=True)


# --- calibration


def calibration(result: Result, size: Size) -> Scene | None:
    """How often trial answers of a confidence are right, dots by their number; None where nothing was recorded."""
    found = result.calibration
    if found is None or not found.n:
        return None
    side = min(420.0, size.width)
    letter, bins = size.letter, [b for b in found.bins if b.n]
    about = (
        f"Share of right trial answers over their confidence, {pluralize(found.n, 'answer')}; on the diagonal both "
        f"are equal. Expected calibration error {format_number(found.ece, 3)}."
    )
    frame = Frame(
        Scale(0.0, 1.0, letter * 2.9, side - 8),
        Scale(0.0, 1.0, side - letter * 3.6, letter * 2.4),
    )
    ticks = named([0, 0.25, 0.5, 0.75, 1], lambda v: f"{100 * v:.0f}")
    scene = Scene(side, side, letter, about)
    scene.items += frame.grid("Confidence in %", "Right in %", letter, ticks, ticks)
    scene.items.append(SceneLine(((frame.x(0), frame.y(0)), (frame.x(1), frame.y(1))), "soft", dashed=True))
    line = [(frame.x(b.confidence), frame.y(b.accuracy)) for b in bins]
    if line:
        scene.items.append(SceneLine(line, "judged", 1.5))
    largest = max((b.n for b in bins), default=1)
    for b, (x, y) in zip(bins, line, strict=True):
        answers = pluralize(b.n, "answer")
        tip = f"confidence {format_percent(b.confidence)}: {format_percent(b.accuracy)} of {answers} right"
        scene.items.append(Dot(x, y, max(2.5, 11 * (b.n / largest) ** 0.5), "judged", tip=tip))
    return scene


def _dots(points: Sequence[Point], radius: float, role: Role, tips: Sequence[str]) -> Iterator[Dot]:
    for (x, y), tip in zip(points, tips, strict=True):
        yield Dot(x, y, radius, role, tip=tip)
