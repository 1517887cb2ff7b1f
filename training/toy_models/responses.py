"""Responses of the embedded models: with full thinking, with a hint in it, cut off, or without thinking."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ...evaluation.tasks.toy_problems import Problem
from ...evaluation.tasks.toy_programs import run
from .traces import CHOICE, DIRECT, FINAL, PLAIN, SLIP, ToyTrace, Writer, think

HINTS = (
    "Be concise.",
    "Make the answer concise!",
    "Keep it short.",
    "Please be brief.",
    "Answer concisely.",
    "Short, please.",
)
CLOSINGS = (
    "Time is short, so I answer now.",
    "I have thought enough and answer now.",
    "Considering the limited time, I give my answer now.",
    "Enough thinking. I answer with what I have.",
)


def _answer(trace: ToyTrace, value: int, tag: int = FINAL) -> ToyTrace:
    trace.add("The answer is \\boxed{")
    trace.add(str(value), tag)
    trace.add("}.")
    return trace


def _closed(writer: Writer) -> ToyTrace:
    writer.trace.add("</think>", CHOICE)
    writer.trace.add("\n\n")
    return _answer(writer.trace, writer.belief)


def thinking(problem: Problem, mode: str, rng: Random, brief: bool) -> ToyTrace:
    """A response in a thinking mode; `brief` as for `think`."""
    writer = Writer(problem, rng)
    think(writer, mode, brief)
    return _closed(writer)


def direct(problem: Problem, rng: Random, brief: bool) -> ToyTrace:
    """A response without thinking, which the template has opened and closed already."""
    return _answer(ToyTrace(), run(problem.program)[-1], DIRECT)


def _line_end(trace: ToyTrace, rng: Random, low: float, high: float) -> int:
    """The number of pieces up to a line end at a random share of the text."""
    want, seen = len(trace.text) * rng.uniform(low, high), 0
    for number, (text, _) in enumerate(trace.pieces, 1):
        seen += len(text)
        if seen >= want and text.endswith("\n"):
            return number
    return len(trace.pieces)


def hinted(problem: Problem, rng: Random, brief: bool) -> ToyTrace:
    """Thinking with a hint in it (masked): the current pass is finished, and checked once if necessary."""
    writer = Writer(problem, rng)
    think(writer, rng.choice(("normal", "normal", "normal", "hard")), brief)
    pieces = writer.trace.pieces
    at = _line_end(writer.trace, rng, 0.0, 0.85)
    gap = "" if pieces[at - 1][0].endswith("\n\n") else "\n"
    end = next(n for n, s in enumerate(writer.stated) if s.pieces >= at)
    writer.trace.pieces = [
        *pieces[:at],
        (f"{gap}[{rng.choice(HINTS)}]\n\n", SLIP),
        *pieces[at : writer.stated[end].pieces],
    ]
    writer.stated = writer.stated[: end + 1]
    if not writer.stated[-1].checked:
        writer.recheck(careful=True, slip=0.0)
    return _closed(writer)


def cut(problem: Problem, rng: Random, brief: bool) -> ToyTrace:
    """Thinking closed from outside with a closing sentence (masked); the answer is the last one stated."""
    writer = Writer(problem, rng)
    think(writer, rng.choice(("normal", "normal", "hard", "easy")), brief)
    at = _line_end(writer.trace, rng, 0.0, 1.0)
    before = [s.value for s in writer.stated if s.pieces <= at]
    early = ToyTrace(writer.trace.pieces[:at])
    if rng.random() < 0.7:
        early.add(rng.choice(CLOSINGS) + "\n", SLIP)
    early.add("</think>\n\n", SLIP)
    return _answer(early, before[-1]) if before else _answer(early, run(problem.program)[-1], PLAIN)


Maker = Callable[[Problem, Random, bool], ToyTrace]

RESPONSES: dict[str, Maker] = {
    "normal": lambda p, r, b: thinking(p, "normal", r, b),
    "easy": lambda p, r, b: thinking(p, "easy", r, b),
    "hard": lambda p, r, b: thinking(p, "hard", r, b),
    "none": direct,
    "hint": hinted,
    "cut": cut,
}


def respond(problem: Problem, mode: str, rng: Random, brief: bool = False) -> ToyTrace:
    """A response of this mode; `brief` as for `think`."""
    return RESPONSES[mode](problem, rng, brief)
