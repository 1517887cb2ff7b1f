"""The embedded task family `tiny`: unlimited graded word problems in disjoint splits.

Four kinds are built on the programs of `toy_programs`. Every problem starts with another one that is then called off,
and is padded with distractors, so that length, kind and bag of words do not reveal its level. The embedded models are
trained on these texts; changing a template changes the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from ...errors import check_known
from .toy_programs import LEVELS, Operand, Program, Work, draw_basket, draw_chain, draw_tree, draw_work, run

KINDS = ("story", "chain", "expr", "basket")
SPLITS = ("train", "fit", "calibrate", "test")
_SHARES = {"train": range(10), "fit": range(10, 12), "calibrate": range(12, 14), "test": range(14, 16)}
_LENGTHS = (76, 104)
_BARE = 0.3
_NOISE_CAPS = (10, 40, 80, 200, 300, 600)

NAMES = "Mia Tom Ana Ben Lea Max Ida Sam Eva Leo Zoe Jon Amy Kai Nia Rob Uma Ted Joy Ian".split()
THINGS = "shells coins cards books pens stamps apples stones beads tickets keys boxes cups toys seeds maps".split()
GOODS = "pears plums figs lemons melons onions leeks beans eggs loaves cakes jars lamps ropes brushes candles".split()
VARIABLES = "a b c d e f g h k m n p q r s t u v w x y z".split()

LEADS = ("", "", "Then ", "Later ", "Next ")
START = ("has", "owns", "holds", "keeps")
EVENTS = {"+": ("finds", "gets", "buys", "wins"), "-": ("loses", "sells", "breaks", "drops")}
STORY = "{lead}{p} {verb} {n} {o}."
STORY_TIMES = "{lead}{p} makes {n} times the {o}."
ASK_STORY = (
    "How many {o} are there in the end, with {p}?",
    "Count the {o} that belong to {p}.",
    "What is the number of {o} now, for {p}?",
    "How many {o} remain, counting those of {p}?",
)
DEFINE = ("{v} = {e}.", "Let {v} be {e}.", "So {v} is {e}.", "Set {v} to {e}.")
ASK_CHAIN = ("What is {v}?", "Find {v}.", "Give the value of {v}.", "How much is {v}?")
ASK_EXPR = ("Compute {e}.", "What is {e}?", "Work out {e}.", "Find the value of {e}.")
BUY = ("{p} buys {k} {g} at {n} each.", "{p} takes {k} {g} for {n} each.", "{p} orders {k} {g}, {n} coins each.")
CHARGE = ("The bag costs {n} on top.", "The delivery costs {n} more.", "The fee is {n} on top.")
ASK_BASKET = (
    "What is the bill of {p}?",
    "How much is it in all, for {p}?",
    "Find the total of {p}.",
    "Add it up for {p}.",
)
CALL_OFF = ("Forget all that.", "Start anew.", "None of that counts.", "Erase it and begin again.")
CALL_OFF_EXPR = ("Do not compute {e}.", "Leave out {e}.", "Never mind {e}.")
NOISE = (
    "The shop opens at {n}.",
    "Bus {n} is late.",
    "There are {n} chairs in the room.",
    "The street has {n} trees.",
    "It is day {n} of the year.",
    "Page {n} is missing.",
    "A dog walked {n} steps.",
    "The hall seats {n} people.",
    "The train has {n} seats.",
    "Room {n} is empty today.",
    "{p} is {n} years old.",
    "{p} counts {n} birds.",
    "{p} waits {n} minutes.",
    "{p} lives in house {n}.",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer; `labels` are its own names of the program's steps, if it has any."""

    id: str
    problem: str
    answer: str
    level: int
    kind: str
    program: Program = ()
    labels: tuple[str, ...] = ()


Draft = tuple[list[str], str, Program]  # relevant sentences, question, program


def count_tokens(sentence: str) -> int:
    """Approximate length in tokens: words plus digits."""
    return sum(1 + sum(c.isdigit() for c in word) for word in sentence.split())


def scatter(core: list[str], extra: list[str], rng: Random) -> list[str]:
    """Merge `extra` into `core` at random positions, keeping the order of `core`."""
    slots = sorted(rng.randint(0, len(core)) for _ in extra)
    merged = list(core)
    for slot, sentence in zip(reversed(slots), reversed(extra), strict=True):
        merged.insert(slot, sentence)
    return merged


@dataclass(frozen=True, slots=True)
class Cast:
    """Names and words that a problem shares with the called-off one before it."""

    name: str
    thing: str
    goods: tuple[str, ...]
    variables: tuple[str, ...]
    style: str
    buy: str


def _event(op: str, name: str, thing: str, number: int, rng: Random) -> str:
    lead = rng.choice(LEADS)
    if op == "*":
        return STORY_TIMES.format(lead=lead, p=name, n=number, o=thing)
    return STORY.format(lead=lead, p=name, verb=rng.choice(EVENTS[op]), n=number, o=thing)


def _story(work: Work, cast: Cast, rng: Random) -> Draft:
    program = draw_chain(work, rng)
    p, o = cast.name, cast.thing
    core = [STORY.format(lead="", p=p, verb=rng.choice(START), o=o, n=program[0].left.literal)]
    core += [_event(step.op, p, o, step.right.literal, rng) for step in program]
    return core, rng.choice(ASK_STORY).format(p=p, o=o), program


def format_operand(operand: Operand, names: Sequence[str]) -> str:
    """A literal number, or the name of an earlier step."""
    return str(operand.literal) if operand.step is None else names[operand.step]


def _chain(work: Work, cast: Cast, rng: Random) -> Draft:
    program = draw_tree(work, rng) if work.steps >= 3 and rng.random() < 0.4 else draw_chain(work, rng)
    names = cast.variables[: len(program)]
    core = [
        cast.style.format(v=name, e=f"{format_operand(step.left, names)} {step.op} {format_operand(step.right, names)}")
        for name, step in zip(names, program, strict=True)
    ]
    return core, rng.choice(ASK_CHAIN).format(v=names[-1]), program


def expression(program: Program, index: int, top: bool = True) -> str:
    """A program as one nested expression, with parentheses inside."""
    step = program[index]
    left, right = (
        str(o.literal) if o.step is None else expression(program, o.step, top=False) for o in (step.left, step.right)
    )
    text = f"{left} {step.op} {right}"
    return text if top else f"({text})"


def _expr(work: Work, cast: Cast, rng: Random) -> Draft:
    program = draw_tree(work, rng) if work.steps >= 3 and rng.random() < 0.3 else draw_chain(work, rng)
    return [], rng.choice(ASK_EXPR).format(e=expression(program, len(program) - 1)), program


def _basket(work: Work, cast: Cast, rng: Random) -> Draft:
    program, lines, charge = draw_basket(work, rng)
    p, buy = cast.name, cast.buy
    core = [buy.format(p=p, k=count, g=g, n=price) for g, (price, count) in zip(cast.goods, lines, strict=False)]
    if charge is not None:
        core.append(rng.choice(CHARGE).format(n=charge))
    return core, rng.choice(ASK_BASKET).format(p=p), program


_MAKERS: dict[str, Callable[[Work, Cast, Random], Draft]] = {
    "story": _story,
    "chain": _chain,
    "expr": _expr,
    "basket": _basket,
}


def draw(kind: str, work: Work, rng: Random, padding: float = 1.0, contrast: int | None = None) -> Problem:
    """One problem without an id; `contrast` is the level of the called-off one.

    `padding` is a share of the full one; at 0.3 and below nothing is called off.
    """
    cast = Cast(
        rng.choice(NAMES),
        rng.choice(THINGS),
        tuple(rng.sample(GOODS, len(GOODS))),
        tuple(rng.sample(VARIABLES, len(VARIABLES))),
        rng.choice(DEFINE),
        rng.choice(BUY),
    )
    core, question, program = _MAKERS[kind](work, cast, rng)
    target = int(rng.randint(*_LENGTHS) * padding)
    room = target - sum(map(count_tokens, core)) - count_tokens(question)
    before: list[str] = []
    if padding > _BARE:
        before = _called_off(kind, cast, len(program), contrast or rng.choice(LEVELS), room, rng)
        room -= sum(map(count_tokens, before))
    extra: list[str] = []
    while room > 6:
        cap = rng.choice(_NOISE_CAPS)  # irrelevant numbers are of the size of the problem's own
        extra.append(rng.choice(NOISE).format(n=rng.randint(2, max(12, cap)), p=rng.choice(NAMES)))
        room -= count_tokens(extra[-1])
    early = sum(rng.random() < len(before) / (len(before) + len(core) + 1) for _ in extra)
    sentences = [*scatter(before[:-1], extra[:early], rng), *before[-1:], *scatter(core, extra[early:], rng)]
    labels = cast.variables[: len(program)] if kind == "chain" else ()
    return Problem("", " ".join([*sentences, question]), str(run(program)[-1]), 0, kind, program, labels)


def _called_off(kind: str, cast: Cast, used: int, level: int, room: int, rng: Random) -> list[str]:
    """A problem of the same kind that fits into `room` tokens; its last sentence calls it off."""
    rest = replace(cast, variables=cast.variables[used:], goods=cast.goods[used:])
    work = draw_work(level, rng)
    sentences: list[str] = []
    for steps in range(work.steps, 0, -1):
        core, _, program = _MAKERS[kind](replace(work, steps=steps), rest, rng)
        off = rng.choice(CALL_OFF_EXPR).format(e=expression(program, len(program) - 1))
        sentences = [off] if kind == "expr" else [*core, rng.choice(CALL_OFF)]
        if sum(map(count_tokens, sentences)) <= room:
            break
    return sentences


def get_split(text: str) -> str:
    """The split of a question, by the hash of its text."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 16
    return next(name for name, share in _SHARES.items() if bucket in share)


def stream(split: str, seed: int, levels: Sequence[int] = LEVELS, kinds: Sequence[str] = KINDS) -> Iterator[Problem]:
    """Endless problems of one split, cycling through levels and kinds; raises OptionError for an unknown one.

    The hash of a problem's text decides its split, so splits are disjoint for all seeds.
    """
    check_known("split", split, SPLITS)
    check_known("level", levels, LEVELS)
    check_known("kind", kinds, KINDS)
    rng = Random(f"tersely:{split}:{seed}")
    count = 0
    while True:
        level = levels[count % len(levels)]
        kind = kinds[(count // len(levels)) % len(kinds)]
        # An easy problem before a hard one, and vice versa, keeps the bag of words similar.
        contrast = min(6, max(1, 7 - level + rng.choice((-1, 0, 0, 1))))
        problem = draw(kind, draw_work(level, rng), rng, contrast=contrast)
        if get_split(problem.problem) == split:
            yield replace(problem, id=f"{split}-{seed}-{count}", level=level)
            count += 1
