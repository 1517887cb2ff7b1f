"""Straight-line arithmetic programs, lists of binary steps: the hidden structure of every embedded problem.

The difficulty is the work (number of steps, size of the numbers, products); `toy_problems` adds wording and padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

LIMIT = 999
LEVELS = (1, 2, 3, 4, 5, 6)
HARD_HALF = (4, 5, 6)


class Operand(NamedTuple):
    """A literal number, or the value of an earlier step when `step` is not None."""

    literal: int
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One binary operation; `op` is one of ``+ - *``."""

    op: str
    left: Operand
    right: Operand


Program = tuple[Step, ...]


def apply(op: str, left: int, right: int) -> int:
    """Carry out one operation."""
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def operand_value(operand: Operand, values: list[int]) -> int:
    """Resolve an operand against the values of the steps so far."""
    return operand.literal if operand.step is None else values[operand.step]


def run(program: Program) -> list[int]:
    """Values of all steps, in order; the last is the answer."""
    values: list[int] = []
    for step in program:
        values.append(apply(step.op, operand_value(step.left, values), operand_value(step.right, values)))
    return values


@dataclass(frozen=True, slots=True)
class Work:
    """Size of a problem: number of steps, largest number, and probability of a product."""

    steps: int
    cap: int
    product: float


def draw_work(level: int, rng: Random) -> Work:
    """Sample the work of one problem; the shapes of levels overlap on purpose (short but hard, long but easy)."""
    twist = rng.random() < 0.3
    if level == 1:
        return Work(1, 10, 0.15)
    if level == 2:
        return Work(rng.choice((2, 3)), 15, 0.0) if twist else Work(2, 40, 0.15)
    if level == 3:
        return Work(2, 300, 0.3) if twist else Work(3, 80, 0.2)
    if level == 4:
        return Work(2, LIMIT, 0.4) if twist else Work(rng.choice((3, 4)), 200, 0.25)
    if level == 5:
        return Work(3, LIMIT, 0.4) if twist else Work(rng.choice((4, 5)), 300, 0.25)
    return Work(4, LIMIT, 0.45) if twist else Work(rng.choice((5, 6)), 600, 0.3)


def _extend(value: int, cap: int, product: float, rng: Random) -> tuple[str, int]:
    """Choose the next operation on a running value so that the result stays within 1..cap."""
    if rng.random() < product:
        factors = [d for d in range(2, 10) if value * d <= max(cap, 40)]
        if factors and value >= 2:
            return "*", rng.choice(factors)
    small = max(2, cap // 12)
    room = cap - value
    if room >= small and (rng.random() < 0.5 or value <= small + 1):
        return "+", rng.randint(small, max(small, min(room, int(cap * 0.6))))
    top = min(value - 1, int(cap * 0.6))
    if top < 1:
        return "+", rng.randint(1, max(1, room))
    return "-", rng.randint(min(small, top), top)


def draw_chain(work: Work, rng: Random) -> Program:
    """A linear program: a running value changed `work.steps` times."""
    # The starting number is from most of the level's range, never trivial on hard levels.
    value = rng.randint(max(2, work.cap // 12), max(6, int(work.cap * 0.6)))
    steps: list[Step] = []
    for i in range(work.steps):
        op, right = _extend(value, work.cap, work.product, rng)
        left = Operand(value) if i == 0 else Operand(0, i - 1)
        steps.append(Step(op, left, Operand(right)))
        value = apply(op, value, right)
    return tuple(steps)


def draw_basket(work: Work, rng: Random) -> tuple[Program, list[tuple[int, int]], int | None]:
    """A sum of price x count lines; returns the program, the lines and a last extra charge (or None)."""
    count_lines = max(1, (work.steps + 1) // 2)
    budget = max(work.cap, 40) // count_lines
    lines: list[tuple[int, int]] = []
    steps: list[Step] = []
    for _ in range(count_lines):
        count = rng.randint(2, 9 if work.cap > 50 else 4)
        price = rng.randint(max(2, budget // (count * 3)), max(3, int(budget * 0.85) // count))
        lines.append((price, count))
        total = len(steps) - 1
        steps.append(Step("*", Operand(price), Operand(count)))
        if total >= 0:
            steps.append(Step("+", Operand(0, total), Operand(0, total + 1)))
    if work.steps % 2:
        return tuple(steps), lines, None
    charge = rng.randint(2, max(3, budget // 4))
    steps.append(Step("+", Operand(0, len(steps) - 1), Operand(charge)))
    return tuple(steps), lines, charge


def draw_tree(work: Work, rng: Random) -> Program:
    """A program with a second branch that is merged into the first (needs at least 3 steps)."""
    main = draw_chain(Work(max(1, work.steps - 2), max(20, work.cap // 2), work.product), rng)
    side = draw_chain(Work(1, max(20, work.cap // 3), work.product), rng)[0]
    values = run(main)
    side_value = apply(side.op, side.left.literal, side.right.literal)
    cut = len(main) - 1
    op = "-" if values[cut] > side_value and (rng.random() < 0.5 or values[cut] + side_value > LIMIT) else "+"
    return (*main, side, Step(op, Operand(0, cut), Operand(0, len(main))))
