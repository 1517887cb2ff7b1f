"""The embedded task family: unlimited graded word problems in disjoint splits.

Four kinds (`story`, `chain`, `expr`, `basket`) over the programs of `programs.py`. Every problem begins with one of the
same kind that is then called off, and is padded with distractors, towards a length drawn independently of its level. So
what counts is what comes after a turn in the middle: neither length nor kind nor the words, in a bag, give the level
away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from ...errors import unknown
from . import templates as w
from .toy_programs import LEVELS, Operand, Program, Work, draw_basket, draw_chain, draw_tree, draw_work, run

KINDS = ("story", "chain", "expr", "basket")
SPLITS = ("train", "fit", "calibrate", "test")
_SHARES = {"train": range(10), "fit": range(10, 12), "calibrate": range(12, 14), "test": range(14, 16)}
_LENGTHS = (76, 104)
_BARE = 0.3
_NOISE_CAPS = (10, 40, 80, 200, 300, 600)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer; `labels` names the program's steps in the words of the problem."""

    id: str
    problem: str
    answer: str
    level: int
    kind: str
    program: Program = ()
    labels: tuple[str, ...] = ()


Draft = tuple[list[str], str, Program, tuple[str, ...]]  # sentences that count, question, program, labels


@dataclass(frozen=True, slots=True)
class Cast:
    """Who and what a problem and the one before it are about, so that both use the same words."""

    name: str
    thing: str
    goods: tuple[str, ...]
    variables: tuple[str, ...]
    style: str
    buy: str


def _cast(rng: Random) -> Cast:
    return Cast(
        rng.choice(w.NAMES),
        rng.choice(w.THINGS),
        tuple(rng.sample(w.GOODS, len(w.GOODS))),
        tuple(rng.sample(w.VARIABLES, len(w.VARIABLES))),
        rng.choice(w.DEFINE),
        rng.choice(w.BUY),
    )


def _event(op: str, name: str, thing: str, number: int, rng: Random) -> str:
    lead = rng.choice(w.LEADS)
    if op == "*":
        return w.STORY_TIMES.format(lead=lead, p=name, n=number, o=thing)
    return w.STORY.format(lead=lead, p=name, verb=rng.choice(w.EVENTS[op]), n=number, o=thing)


def _story(work: Work, cast: Cast, rng: Random) -> Draft:
    program = draw_chain(work, rng)
    p, o = cast.name, cast.thing
    core = [w.STORY.format(lead="", p=p, verb=rng.choice(w.START), o=o, n=program[0].left.literal)]
    core += [_event(step.op, p, o, step.right.literal, rng) for step in program]
    return core, rng.choice(w.ASK_STORY).format(p=p, o=o), program, ("",) * len(program)


def _term(operand: Operand, names: Sequence[str]) -> str:
    return str(operand.literal) if operand.step is None else names[operand.step]


def _chain(work: Work, cast: Cast, rng: Random) -> Draft:
    program = draw_tree(work, rng) if work.steps >= 3 and rng.random() < 0.4 else draw_chain(work, rng)
    names = cast.variables[: len(program)]
    style = cast.style
    core = []
    for name, step in zip(names, program, strict=True):
        text = f"{_term(step.left, names)} {step.op} {_term(step.right, names)}"
        core.append(style.format(v=name, e=text))
    return core, rng.choice(w.ASK_CHAIN).format(v=names[-1]), program, tuple(names)


def expression(program: Program, index: int, top: bool = True) -> str:
    """A program as one nested expression, with parentheses except around the whole."""
    step = program[index]
    left, right = (
        str(o.literal) if o.step is None else expression(program, o.step, top=False) for o in (step.left, step.right)
    )
    text = f"{left} {step.op} {right}"
    return text if top else f"({text})"


def _expr(work: Work, cast: Cast, rng: Random) -> Draft:
    program = draw_tree(work, rng) if work.steps >= 3 and rng.random() < 0.3 else draw_chain(work, rng)
    question = rng.choice(w.ASK_EXPR).format(e=expression(program, len(program) - 1))
    return [], question, program, ("",) * len(program)


def _basket(work: Work, cast: Cast, rng: Random) -> Draft:
    program, lines, charge = draw_basket(work, rng)
    p, buy = cast.name, cast.buy
    core = [buy.format(p=p, k=count, g=g, n=price) for g, (price, count) in zip(cast.goods, lines, strict=False)]
    if charge is not None:
        core.append(rng.choice(w.CHARGE).format(n=charge))
    return core, rng.choice(w.ASK_BASKET).format(p=p), program, ("",) * len(program)


_MAKERS: dict[str, Callable[[Work, Cast, Random], Draft]] = {
    "story": _story,
    "chain": _chain,
    "expr": _expr,
    "basket": _basket,
}


def draw(
    kind: str, work: Work, rng: Random, padding: float = 1.0, contrast: int | None = None
) -> tuple[str, Program, tuple[str, ...]]:
    """One problem text of this kind and work, with its program and step labels.

    padding: below 1 shortens what does not count; up to 0.3 nothing is called off, at 0 there is none. contrast: the
    level of what is called off, by default any.
    """
    cast = _cast(rng)
    core, question, program, labels = _MAKERS[kind](work, cast, rng)
    target = int(rng.randint(*_LENGTHS) * padding)
    room = target - sum(map(w.size, core)) - w.size(question)
    before: list[str] = []
    if padding > _BARE:
        before = _called_off(kind, cast, len(program), contrast or rng.choice(LEVELS), room, rng)
        room -= sum(map(w.size, before))
    extra: list[str] = []
    while room > 6:
        extra.append(w.noise(rng.choice(_NOISE_CAPS), rng))
        room -= w.size(extra[-1])
    early = sum(rng.random() < len(before) / (len(before) + len(core) + 1) for _ in extra)
    sentences = [*w.scatter(before[:-1], extra[:early], rng), *before[-1:], *w.scatter(core, extra[early:], rng)]
    return " ".join([*sentences, question]), program, labels


def _called_off(kind: str, cast: Cast, used: int, level: int, room: int, rng: Random) -> list[str]:
    """A problem of the same kind that does not count, as long as fits into the room, and last what calls it off."""
    other = replace(cast, variables=cast.variables[used:], goods=cast.goods[used:])
    work = draw_work(level, rng)
    found: list[str] = []
    for steps in range(work.steps, 0, -1):
        core, _, program, _ = _MAKERS[kind](replace(work, steps=steps), other, rng)
        off = rng.choice(w.CALL_OFF_EXPR).format(e=expression(program, len(program) - 1))
        found = [off] if kind == "expr" else [*core, rng.choice(w.CALL_OFF)]
        if sum(map(w.size, found)) <= room:
            break
    return found


def get_split(text: str) -> str:
    """The split that a question belongs to, by the hash of its text."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 16
    return next(name for name, share in _SHARES.items() if bucket in share)


def stream(split: str, seed: int, levels: Sequence[int] = LEVELS, kinds: Sequence[str] = KINDS) -> Iterator[Problem]:
    """Endless problems of one split.

    A problem belongs to the split that the hash of its text says, so splits are disjoint whatever the seeds.
    Levels and kinds go round evenly. Raises OptionError (a ValueError) for an unknown split, level or kind.
    """
    for what, got, known in (("split", [split], SPLITS), ("level", levels, LEVELS), ("kind", kinds, KINDS)):
        wrong = [x for x in got if x not in known]
        if wrong:
            raise unknown(what, str(wrong[0]), map(str, known))
    rng = Random(f"tersely:{split}:{seed}")
    count = 0
    while True:
        level = levels[count % len(levels)]
        kind = kinds[(count // len(levels)) % len(kinds)]
        # With an easy one before a hard one and the other way round, a bag of all words holds much the same.
        contrast = min(6, max(1, 7 - level + rng.choice((-1, 0, 0, 1))))
        text, program, labels = draw(kind, draw_work(level, rng), rng, contrast=contrast)
        if get_split(text) != split:
            continue
        yield Problem(f"{split}-{seed}-{count}", text, str(run(program)[-1]), level, kind, program, labels)
        count += 1
