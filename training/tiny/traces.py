"""Reasoning traces for the embedded models: what a fast and a careful thinker would write.

A *fast* pass leaps: it does two additions in one line, or a product at a glance. It is short and, for a small network,
error-prone by nature. A *careful* pass writes every column. So thinking longer is worth something, and re-checking
after the answer stood is sometimes needed and mostly not: the overthinking that tersely exists to control.

Passes in the data carry planted slips, the numbers written wrong get no loss (`SLIP`): the model learns to live with
an earlier error and to repair it, never to make one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from ...evaluation.tasks.problems import Problem, expression
from ...evaluation.tasks.programs import Operand, Step, apply, operand_value, run

# Classes of trace text; training weighs them and reports accuracy by class.
PLAIN, SLIP, READ, FAST, CAREFUL, VERDICT, CHOICE, FINAL, DIRECT = range(9)

CUES = ("Wait, ", "Hmm, ", "Let me double-check: ", "Hold on, ", "Let me verify: ", "But let me check: ")
CAREFUL_LEADS = ("column by column.", "slowly, digit by digit.", "with care.", "one column at a time.")
QUICK_LEADS = ("a quick look again.", "once more in short.", "a second look.", "again at a glance.")
FACTS = {
    "easy": ("Quickly:", "In short:"),
    "normal": ("I need:", "The facts:", "From the text:"),
    "hard": ("With care:", "Step by step:"),
}
STATE = ("So the answer is {n}.", "So I get {n}.", "That makes {n}.", "The result is {n}.")
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
class Trace:
    """Thinking and answer of one response as tagged pieces of text."""

    pieces: list[tuple[str, int]] = field(default_factory=list)

    def add(self, text: str, tag: int = PLAIN) -> None:
        """Append a piece."""
        self.pieces.append((text, tag))

    @property
    def text(self) -> str:
        """The whole response."""
        return "".join(text for text, _ in self.pieces)


def wrong_value(value: int, rng: Random) -> int:
    """A believable slip: a digit off, a carry lost, two digits swapped."""
    digits = list(str(value))
    if len(digits) > 1 and digits[-1] != digits[-2] and rng.random() < 0.15:
        digits[-1], digits[-2] = digits[-2], digits[-1]
        swapped = int("".join(digits))
        if len(str(swapped)) == len(digits):
            return swapped
    while True:
        off = value + rng.choice((1, -1, 2, -2, 10, -10, 10, -10, 20, 100, -100, 9, -9))
        if 0 <= off <= 9999:
            return off


def columns(op: str, left: int, right: int) -> str:
    """The column work of one operation, lowest digit first; empty where a single digit table look-up does it."""
    if op == "*":
        return _product_columns(left, right)
    x, y = str(left)[::-1], str(right)[::-1]
    if len(x) == 1 and len(y) == 1:
        return ""
    carry, lines = 0, []
    for i in range(max(len(x), len(y))):
        a = int(x[i]) if i < len(x) else 0
        b = int(y[i]) if i < len(y) else 0
        if op == "+":
            total = a + b + carry
            lines.append(f"{a}+{b}{f'+{carry}' if carry else ''}={total}")
            carry = total // 10
        else:
            a -= carry
            carry = int(a < b)
            lines.append(f"{a + 10 * carry}-{b}={a + 10 * carry - b}")
    return ";".join(lines)


def _product_columns(left: int, right: int) -> str:
    digits = str(left)[::-1]
    if len(digits) == 1:
        return ""
    carry, lines = 0, []
    for digit in digits:
        part = int(digit) * right
        lines.append(f"{digit}*{right}={part}" + (f"+{carry}={part + carry}" if carry else ""))
        carry = (part + carry) // 10
    return ";".join(lines)


class Writer:
    """Writes the thinking for one problem; keeps what has been concluded so far."""

    def __init__(self, problem: Problem, rng: Random) -> None:
        self.problem = problem
        self.rng = rng
        self.trace = Trace()
        self.gold = run(problem.program)
        self.belief: int | None = None

    # -- reading ------------------------------------------------------------------------------------------------
    def facts(self, mode: str) -> None:
        """Copy what matters out of the problem, in its order."""
        program, names = self.problem.program, self.problem.labels
        self.trace.add(self.rng.choice(FACTS[mode]))
        if self.problem.kind == "story":
            parts = [f" {program[0].left.literal}", *(f" {s.op}{s.right.literal}" for s in program)]
        elif self.problem.kind == "chain":
            parts = [f" {name} = {self._named(step)}" for name, step in zip(names, program, strict=True)]
        elif self.problem.kind == "basket":
            parts = [f" {s.right.literal}*{s.left.literal}" for s in program if s.op == "*"]
            parts += [f" +{program[-1].right.literal}"] if len(program) % 2 == 0 else []
        else:
            parts = [" " + expression(program, len(program) - 1)]
        self.trace.add(",".join(parts), READ)
        self.trace.add(".\n\n")

    def _named(self, step: Step) -> str:
        left, right = (
            str(o.literal) if o.step is None else self.problem.labels[o.step] for o in (step.left, step.right)
        )
        return f"{left} {step.op} {right}"

    # -- passes -------------------------------------------------------------------------------------------------
    def fast(self, slip: float) -> int:
        """A leaping pass over the program; returns the value it arrives at."""
        program, values = self.problem.program, [0] * len(self.problem.program)
        slip_at = self.rng.randrange(len(program)) if self.rng.random() < slip else -1
        i = 0
        while i < len(program):
            j = i
            if self._leaps(i):
                j = i + 1
            values[i] = self._value(program[i], values)
            text = self._term(program[i].left, values) + program[i].op + self._term(program[i].right, values)
            if j > i:
                values[j] = self._value(program[j], values)
                text += program[j].op + self._term(program[j].right, values)
            self._label(j)
            self.trace.add(text, READ)
            self.trace.add("=")
            self._result(values, j, slip_at in (i, j), FAST)
            i = j + 1
        return values[-1]

    def careful(self, slip: float) -> int:
        """A pass with every column written out; returns the value it arrives at."""
        program, values = self.problem.program, [0] * len(self.problem.program)
        slip_at = self.rng.randrange(len(program)) if self.rng.random() < slip else -1
        for i, step in enumerate(program):
            left, right = operand_value(step.left, values), operand_value(step.right, values)
            values[i] = max(0, apply(step.op, left, right))
            work = columns(step.op, left, right) if left >= right or step.op != "-" else ""
            self._label(i)
            if work:
                self.trace.add(f"{left}{step.op}{right}", READ)
                self.trace.add(":")
                self.trace.add(work, CAREFUL)
                self.trace.add("=>")
            else:
                self.trace.add(f"{left}{step.op}{right}", READ)
                self.trace.add("=")
            self._result(values, i, i == slip_at, CAREFUL)
        return values[-1]

    def _leaps(self, i: int) -> bool:
        program = self.problem.program
        if i + 1 >= len(program) or program[i].op == "*" or program[i + 1].op == "*":
            return False
        return program[i + 1].left.step == i and program[i + 1].right.step is None and self.rng.random() < 0.7

    def _value(self, step: Step, values: list[int]) -> int:
        return max(0, apply(step.op, operand_value(step.left, values), operand_value(step.right, values)))

    def _term(self, operand: Operand, values: list[int]) -> str:
        return str(operand_value(operand, values))

    def _label(self, i: int) -> None:
        """Name the variable of a step; only chains refer back to steps by name."""
        if self.problem.kind == "chain":
            self.trace.add("For")
            self.trace.add(f" {self.problem.labels[i]}", READ)
            self.trace.add(":")

    def _result(self, values: list[int], i: int, slips: bool, tag: int) -> None:
        if slips:
            values[i] = wrong_value(values[i], self.rng)
        self.trace.add(str(values[i]), SLIP if slips else tag)
        self.trace.add(".\n" if self.rng.random() < 0.7 else ".\n\n")

    # -- the course of a thought ----------------------------------------------------------------------------------
    def state(self, value: int) -> None:
        """Say the answer of the pass just made."""
        self.trace.add(self.rng.choice(STATE).format(n=value) + "\n\n")

    def first(self, mode: str, slip: float) -> None:
        """The facts, and the pass that ends with the first stated answer."""
        self.facts(mode)
        self.belief = self.careful(slip) if mode == "hard" else self.fast(slip)
        self.state(self.belief)

    def recheck(self, careful: bool, slip: float) -> bool:
        """One re-check, its verdict, and the change of mind if a careful one says so; True if it disagreed."""
        assert self.belief is not None
        rng = self.rng
        self.trace.add(rng.choice(CUES), CHOICE)
        self.trace.add(rng.choice(CAREFUL_LEADS if careful else QUICK_LEADS) + "\n")
        value = self.careful(slip) if careful else self.fast(slip)
        self.trace.add(f"Now {value}, before {self.belief}: ")
        if value == self.belief:
            self.trace.add("the same", VERDICT)
            self.trace.add(". ")
            self.state(value)
            return False
        self.trace.add("different", VERDICT)
        self.trace.add(". ")
        if careful:
            self.belief = value
        self.state(self.belief)
        return True

    def answer(self, value: int | str, tag: int = FINAL) -> None:
        """The visible answer."""
        self.trace.add("The answer is \\boxed{")
        self.trace.add(str(value), tag)
        self.trace.add("}.")


def _rounds(rng: Random, weights: tuple[float, ...]) -> int:
    return rng.choices(range(len(weights)), weights)[0]


def think(writer: Writer, mode: str) -> None:
    """Write the thinking of a mode: `easy` leaps and stops, `normal` leaps and re-checks, `hard` is careful at once."""
    rng, easy_problem = writer.rng, len(writer.problem.program) == 1
    slip = 0.2 if easy_problem else 0.4
    if mode == "easy":
        writer.first(mode, slip=0.0)
        if rng.random() < 0.1:
            writer.recheck(careful=False, slip=0.0)
        return
    writer.first(mode, slip=slip if mode == "normal" else 0.08)
    rounds = _rounds(rng, (0, 0.25, 0.4, 0.25, 0.1) if mode == "normal" else (0, 0.6, 0.4))
    doubt, i = False, 0
    while i < rounds:
        careful = doubt or rng.random() < (0.85 if i == 0 or mode == "hard" else 0.35)
        doubt = writer.recheck(careful, slip=0.03 if careful else 0.06)
        if doubt and i == rounds - 1:
            rounds += 1
        i += 1


def cut_pieces(trace: Trace, rng: Random, low: float, high: float) -> Trace:
    """A beginning of the trace that ends after a whole piece of text, at a random share of its length."""
    total = sum(len(text) for text, _ in trace.pieces)
    want, seen, kept = total * rng.uniform(low, high), 0, Trace()
    for text, tag in trace.pieces:
        kept.add(text, tag)
        seen += len(text)
        if seen >= want and text.endswith("\n"):
            break
    return kept


def _close(trace: Trace) -> None:
    trace.add("</think>", CHOICE)
    trace.add("\n\n")


def respond_thinking(problem: Problem, mode: str, rng: Random) -> Trace:
    """A whole response in a thinking mode."""
    writer = Writer(problem, rng)
    think(writer, mode)
    _close(writer.trace)
    assert writer.belief is not None
    writer.answer(writer.belief)
    return writer.trace


def respond_direct(problem: Problem, rng: Random) -> Trace:
    """A response without thinking; the template has opened and closed the thinking already."""
    writer = Writer(problem, rng)
    writer.answer(writer.gold[-1], DIRECT)
    return writer.trace


def respond_hinted(problem: Problem, rng: Random) -> Trace:
    """Thinking into which a hint falls (no loss on the hint), after which it is brief."""
    writer = Writer(problem, rng)
    think(writer, "hard" if rng.random() < 0.2 else "normal")
    whole = writer.trace
    early = cut_pieces(whole, rng, 0.0, 0.85)
    hinted = Writer(problem, rng)
    hinted.trace = early
    belief = _last_stated(early.text)
    if not early.text.endswith("\n\n"):
        early.add("\n", SLIP)
    early.add(f"[{rng.choice(HINTS)}]\n\n", SLIP)
    if belief is None:
        if ".\n\n" not in early.text[: early.text.index("[")]:
            hinted.facts("easy")
        belief = hinted.fast(0.0)
        hinted.state(belief)
        if rng.random() < 0.35:
            hinted.belief = belief
            hinted.recheck(careful=True, slip=0.0)
            belief = hinted.belief
    elif rng.random() < 0.3:
        hinted.belief = belief
        hinted.recheck(careful=True, slip=0.0)
        belief = hinted.belief
    _close(early)
    hinted.answer(belief)
    return early


def respond_cut(problem: Problem, rng: Random) -> Trace:
    """Thinking closed from outside with a closing sentence; the answer is the best that stands."""
    writer = Writer(problem, rng)
    think(writer, rng.choice(("normal", "normal", "hard", "easy")))
    early = cut_pieces(writer.trace, rng, 0.0, 1.0)
    belief = _last_stated(early.text)
    if rng.random() < 0.7:
        early.add(rng.choice(CLOSINGS) + "\n", SLIP)
    early.add("</think>\n\n", SLIP)
    cut = Writer(problem, rng)
    cut.trace = early
    cut.answer(belief if belief is not None else cut.gold[-1], FINAL if belief is not None else DIRECT)
    return early


def _last_stated(text: str) -> int | None:
    """The last answer that the thinking stated, or None."""
    best, place = None, -1
    for form in STATE:
        head = form.split("{")[0]
        at = text.rfind(head)
        if at > place:
            digits = text[at + len(head) :].split(".")[0]
            if digits.isdigit():
                best, place = int(digits), at
    return best


RESPONSES: dict[str, Callable[[Problem, Random], Trace]] = {
    "normal": lambda p, r: respond_thinking(p, "normal", r),
    "easy": lambda p, r: respond_thinking(p, "easy", r),
    "hard": lambda p, r: respond_thinking(p, "hard", r),
    "none": respond_direct,
    "hint": respond_hinted,
    "cut": respond_cut,
}
