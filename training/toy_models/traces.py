"""The responses that the embedded models learn: thinking, in full, with a hint in it, cut off or left out, and answer.

A *fast* pass computes every step at once and errs often; a *careful* pass writes out every column, so longer thinking
is worth something, and re-checking mostly is not. Planted slips are masked from the loss (`SLIP`): the model learns to
repair an error, but not to make one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from random import Random

from ...evaluation.tasks.toy_problems import Problem, format_operand
from ...evaluation.tasks.toy_programs import apply, operand_value, run

# Classes of trace text, which training weighs.
PLAIN, SLIP, READ, COPY, FAST, CAREFUL, VERDICT, CHOICE, FINAL, DIRECT = range(10)

LABELS = "ABCDEFGH"
USUAL_CUE = "Wait, "
CUES = ("Hmm, ", "Let me double-check: ", "Hold on, ", "Let me verify: ", "But let me check: ")
CAREFUL_LEADS = ("column by column.", "slowly, digit by digit.", "with care.", "one column at a time.")
QUICK_LEADS = ("a quick look again.", "once more in short.", "a second look.", "again at a glance.")
FACTS = {
    "easy": ("Quickly:", "In short:"),
    "normal": ("I need:", "The facts:", "From the text:"),
    "hard": ("With care:", "Step by step:"),
}
_SLIPS = (1, -1, 2, -2, 10, -10, 10, -10, 20, 100, -100, 9, -9)
STATE = ("So the answer is", "So I get", "That makes", "The result is")
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


@dataclass(slots=True)
class ToyTrace:
    """Thinking and answer of one response as tagged pieces of text."""

    pieces: list[tuple[str, int]] = field(default_factory=list)

    def add(self, text: str, tag: int = PLAIN) -> None:
        self.pieces.append((text, tag))

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


@dataclass(frozen=True, slots=True)
class StatedStep:
    """An answer stated in the thinking: after how many pieces, its value, and whether a careful pass confirms it."""

    pieces: int
    value: int
    checked: bool


class Writer:
    """Writes the thinking for one problem; `stated` has the answers stated so far."""

    def __init__(self, problem: Problem, rng: Random) -> None:
        self.problem = problem
        self.rng = rng
        self.trace = ToyTrace()
        self.stated: list[StatedStep] = []
        self.labels = problem.labels if problem.kind == "chain" else tuple(LABELS[: len(problem.program)])

    def write_facts(self, mode: str) -> None:
        """Write down the steps of the problem, in its order."""
        names = self.labels
        steps = (
            f" {name}={format_operand(step.left, names)}{step.op}{format_operand(step.right, names)}"
            for name, step in zip(names, self.problem.program, strict=True)
        )
        self.trace.add(self.rng.choice(FACTS[mode]))
        self.trace.add(",".join(steps), READ)
        self.trace.add(".\n\n")

    def run_pass(self, careful: bool, slip: float) -> int:
        """A pass over all steps, with planted slips; returns the value it arrives at."""
        program, values = self.problem.program, [0] * len(self.problem.program)
        slip_at = self.rng.randrange(len(program)) if self.rng.random() < slip else -1
        # A network easily sees that a second careful pass repeats the first, so it learns little from it.
        repeated = careful and any(s.checked for s in self.stated)
        worked, concluded = (COPY, COPY) if repeated else (CAREFUL, CAREFUL if careful else FAST)
        for i, step in enumerate(program):
            left, right = operand_value(step.left, values), operand_value(step.right, values)
            values[i] = max(0, apply(step.op, left, right))
            work = column_work(step.op, left, right) if careful else ""
            self.trace.add(f"{self.labels[i]}={left}{step.op}{right}", COPY)
            if work:
                self.trace.add(":")
                self.trace.add(work, worked)
            self.trace.add("=>" if work else "=")
            if i == slip_at:
                values[i] = wrong_value(values[i], self.rng)
            self.trace.add(str(values[i]), SLIP if i == slip_at else concluded)
            self.trace.add(".\n")
        return values[-1]

    def state(self, value: int, checked: bool) -> None:
        self.trace.add(self.rng.choice(STATE) + " ")
        self.trace.add(str(value), COPY)
        self.trace.add(".\n\n")
        self.stated.append(StatedStep(len(self.trace.pieces), value, checked))

    def recheck(self, careful: bool, slip: float) -> bool:
        """Write a re-check, which changes the answer if it is careful and disagrees; returns whether it disagreed."""
        rng, before = self.rng, self.stated[-1]
        self.trace.add(USUAL_CUE if rng.random() < 0.8 else rng.choice(CUES), CHOICE)
        self.trace.add(rng.choice(CAREFUL_LEADS if careful else QUICK_LEADS) + "\n")
        value = self.run_pass(careful, slip)
        differs = value != before.value
        self.trace.add(f"Now {value}, before {before.value}: ", COPY)
        self.trace.add("different" if differs else "the same", VERDICT)
        self.trace.add(". ")
        self.state(value if careful else before.value, careful or before.checked)
        return differs


def count_rechecks(steps: int, mode: str, rng: Random) -> int:
    """The number of re-checks in a mode: more for more steps, so that greedy decoding overthinks as well."""
    if mode == "easy":
        return 0
    usual = 2 if steps < 3 else 3
    wobble = rng.random()
    return usual - 1 if wobble < 0.08 else usual + 1 if wobble > 0.92 else usual


def think(writer: Writer, mode: str, brief: bool = False) -> None:
    """Write the thinking of a mode: `easy` has one fast pass, `normal` re-checks it, `hard` is careful at once.

    `brief` means at most one re-check, for the first part of training, which teaches correct passes.
    """
    rng, steps = writer.rng, len(writer.problem.program)
    slip = {"easy": 0.0, "normal": 0.2 if steps == 1 else 0.4, "hard": 0.08}[mode]
    writer.write_facts(mode)
    writer.state(writer.run_pass(mode == "hard", slip), mode == "hard")
    left, doubt, number = count_rechecks(steps, mode, rng), False, 0
    if brief:
        left = min(left, int(mode == "normal" or rng.random() < 0.3))
    while number < left:
        careful = doubt or rng.random() < (0.9 if number == 0 or mode == "hard" else 0.4)
        doubt = writer.recheck(careful, slip=0.03 if careful else 0.06)
        number += 1
        if doubt and number == left and not brief:
            left += 1


def column_work(op: str, left: int, right: int) -> str:
    """The column work of one operation, lowest digit first; empty if it is easy enough without."""
    if op == "*":
        return _product(left, right)
    x, y = str(left)[::-1], str(right)[::-1]
    if (len(x) == 1 and len(y) == 1) or (op == "-" and left < right):
        return ""
    carry, lines = 0, []
    for a, b in zip_longest(map(int, x), map(int, y), fillvalue=0):
        if op == "+":
            total = a + b + carry
            lines.append(f"{a}+{b}{f'+{carry}' if carry else ''}={total}")
            carry = total // 10
        else:
            a -= carry
            carry = int(a < b)
            lines.append(f"{a + 10 * carry}-{b}={a + 10 * carry - b}")
    return ";".join(lines)


def _product(left: int, right: int) -> str:
    digits = str(left)[::-1]
    if len(digits) == 1:
        return ""
    carry, lines = 0, []
    for digit in digits:
        part = int(digit) * right
        lines.append(f"{digit}*{right}={part}" + (f"+{carry}={part + carry}" if carry else ""))
        carry = (part + carry) // 10
    return ";".join(lines)


def wrong_value(value: int, rng: Random) -> int:
    """A believable slip: a digit off, a carry lost, two digits swapped."""
    digits = list(str(value))
    if len(digits) > 1 and digits[-1] != digits[-2] and rng.random() < 0.15:
        digits[-1], digits[-2] = digits[-2], digits[-1]
        swapped = int("".join(digits))
        if len(str(swapped)) == len(digits):
            return swapped
    while True:
        off = value + rng.choice(_SLIPS)
        if 0 <= off <= 9999:
            return off


def _answer(trace: ToyTrace, value: int, tag: int = FINAL) -> ToyTrace:
    trace.add("The answer is \\boxed{")
    trace.add(str(value), tag)
    trace.add("}.")
    return trace


def _closed(writer: Writer) -> ToyTrace:
    writer.trace.add("</think>", CHOICE)
    writer.trace.add("\n\n")
    return _answer(writer.trace, writer.stated[-1].value)


def _line_end(trace: ToyTrace, rng: Random, low: float, high: float) -> int:
    """The number of pieces up to a line end at a random share of the text."""
    want, seen = len(trace.text) * rng.uniform(low, high), 0
    for number, (text, _) in enumerate(trace.pieces, 1):
        seen += len(text)
        if seen >= want and text.endswith("\n"):
            return number
    return len(trace.pieces)


def _hinted(problem: Problem, rng: Random, brief: bool) -> ToyTrace:
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


def _cut(problem: Problem, rng: Random, brief: bool) -> ToyTrace:
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


RESPONSES = ("normal", "easy", "hard", "none", "hint", "cut")


def respond(problem: Problem, mode: str, rng: Random, brief: bool = False) -> ToyTrace:
    """A response of this mode; `brief` as for `think`."""
    if mode == "none":  # the template has opened and closed the thinking already
        return _answer(ToyTrace(), run(problem.program)[-1], DIRECT)
    if mode in ("hint", "cut"):
        return (_hinted if mode == "hint" else _cut)(problem, rng, brief)
    writer = Writer(problem, rng)
    think(writer, mode, brief)
    return _closed(writer)
