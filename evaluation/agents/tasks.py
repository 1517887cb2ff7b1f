"""Tasks for an agent, of five kinds: two that need no tool, and three that need the pages of a world.

`instant` and `reasoning` are problems of the embedded family, of the level that needs no thought and of those that do.
`lookup` follows links from page to page, `calculate` reckons with numbers that stand on several pages, and `collect`
names all entities under a root (a tree of pages, after WebLeaper, arXiv 2510.24697).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from ...controller.text.answers import extract_boxed, normalize_answer
from ...errors import unknown
from ...models import NAMES
from ..tasks.toy_problems import SPLITS, get_split, stream
from .world import World, build

Call = tuple[str, str]  # a tool and its argument

FORM = "Give the final answer in \\boxed{}, several names separated by semicolons."

KINDS = ("instant", "reasoning", "lookup", "calculate", "collect")
NO_TOOL = KINDS[:2]
HOPS = (1, 2, 3)

LINKS = {
    "person": {"Team": "the team of {}", "Home": "the home town of {}", "Mentor": "the mentor of {}"},
    "team": {"Firm": "the firm that {} belongs to", "Lead": "the lead of {}"},
    "firm": {"Town": "the town of {}"},
    "town": {"Mayor": "the mayor of {}"},
}
NUMBERS = {
    "person": {"Wage": "the wage of {}"},
    "firm": {"Founded": "the year in which {} was founded"},
    "town": {"Residents": "the number of residents of {}"},
}


def system_for(model: str) -> str | None:
    """What asks a model for the form of an answer; the embedded ones know it, and no system prompt."""
    return None if model in NAMES else FORM


@dataclass(frozen=True, slots=True)
class Task:
    """A question with what is right and the calls that would find it out, in order.

    gold: one number or name, or for `collect` all names; keys: what each call is for, the line of the page to go by.
    """

    id: str
    kind: str
    question: str
    gold: frozenset[str]
    world: World
    calls: tuple[Call, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def pages(self) -> frozenset[str]:
        """The pages that have to be read."""
        return frozenset(argument for tool, argument in self.calls if tool == "lookup")

    def solved_by(self, answer: str) -> bool:
        """Whether an answer, its boxed part or else its last line, says what is right and no more."""
        lines = answer.strip().splitlines()
        said = extract_boxed(answer) or (lines[-1] if lines else "")
        if self.gold <= self.world.pages.keys():
            return self.world.mentioned(said) == self.gold
        return {normalize_answer(said)} == {normalize_answer(gold) for gold in self.gold}


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """A thing in words, its value, and the calls that lead to it."""

    words: str
    value: str
    calls: tuple[Call, ...] = ()
    keys: tuple[str, ...] = ()


def tasks(split: str, seed: int, limit: int, kinds: Sequence[str] = KINDS) -> list[Task]:
    """So many tasks, no question twice; see `stream_tasks`."""
    made: dict[str, Task] = {}
    for task in stream_tasks(split, seed, kinds):
        if len(made) == limit:
            break
        made.setdefault(task.question, task)
    return list(made.values())


def stream_tasks(split: str, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Task]:
    """Endless tasks, their kinds in turn; raises OptionError for an unknown split or kind.

    A question belongs to the split that the hash of its text says, so splits share none.
    """
    for what, got, accepted in (("split", [split], SPLITS), ("kind of task", kinds, KINDS)):
        for name in got:
            if name not in accepted:
                raise unknown(what, name, accepted)
    problems = {"instant": stream(split, seed, (1,)), "reasoning": stream(split, seed, (3, 4, 5, 6))}
    for number in count():
        kind, name = kinds[number % len(kinds)], f"{split}-{seed}-{number}"
        if kind in NO_TOOL:
            problem = next(problems[kind])
            yield Task(name, kind, problem.problem, frozenset({problem.answer}), build(name))
        else:
            yield next(task for task in _drawn(kind, name) if get_split(task.question) == split)


def _drawn(kind: str, name: str) -> Iterator[Task]:
    """Tasks of a kind, each in a world of its own."""
    for again in count():
        place = f"{name}:{again}"
        yield _MAKERS[kind](name, build(place), Random(f"tersely:tasks:{place}"))


def _step(world: World, found: AgentAnswer, relations: Mapping[str, Mapping[str, str]], rng: Random) -> AgentAnswer:
    """One page further."""
    page = world.pages[found.value]
    key = rng.choice(sorted(relations[page.kind]))
    words = relations[page.kind][key].format(found.words)
    return AgentAnswer(words, page.all(key)[0], (*found.calls, ("lookup", page.name)), (*found.keys, key))


def _path(world: World, hops: int, rng: Random, number: bool) -> AgentAnswer:
    """A thing that many pages away; no page twice on the way, and none that the question names itself."""
    while True:
        start = rng.choice(sorted(world.pages))
        found = AgentAnswer(start, start)
        for hop in range(hops):
            last = number and hop == hops - 1
            relations = NUMBERS if last else LINKS
            if world.pages[found.value].kind not in relations:
                break
            found = _step(world, found, relations, rng)
        read = [argument for _, argument in found.calls]
        if len(read) == hops == len(set(read)) and found.value not in {*read, start}:
            return found


def _lookup(name: str, world: World, rng: Random) -> Task:
    found = _path(world, rng.choice(HOPS), rng, number=rng.random() < 0.3)
    question = f"What is {found.words}?"
    return Task(name, "lookup", question, frozenset({found.value}), world, found.calls, found.keys)


OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "+": ("plus", operator.add),
    "-": ("minus", operator.sub),
    "*": ("times", operator.mul),
}
"""Signs of the calculator, in words and as what they do."""


def _calculate(name: str, world: World, rng: Random) -> Task:
    one, other = (_path(world, rng.choice(HOPS[:2]), rng, number=True) for _ in range(2))
    while set(one.calls) & set(other.calls):
        other = _path(world, rng.choice(HOPS[:2]), rng, number=True)
    sign = rng.choice(sorted(OPERATIONS))
    word, operate = OPERATIONS[sign]
    value = str(operate(int(one.value), int(other.value)))
    calls = (*one.calls, *other.calls, ("calculator", f"{one.value} {sign} {other.value}"))
    question = f"How much is {one.words} {word} {other.words}?"
    return Task(name, "calculate", question, frozenset({value}), world, calls, (*one.keys, *other.keys, "result"))


def _collect(name: str, world: World, rng: Random) -> Task:
    """Everyone under a root: the members of a team, of a firm, of two firms; or those of a firm who earn enough."""
    form = rng.choice(("team", "firm", "union", "filter"))
    if form == "team":
        team = rng.choice(world.of("team"))
        question, gold = f"Who are the members of {team.name}?", frozenset(team.all("Members"))
        return Task(name, "collect", question, gold, world, (("lookup", team.name),), ("Members",))
    roots = rng.sample(world.of("firm"), 2 if form == "union" else 1)
    teams = [world.pages[team] for root in roots for team in root.all("Teams")]
    staff = [world.pages[person] for team in teams for person in team.all("Members")]
    who, read = f"Who works at {' or at '.join(root.name for root in roots)}", [*roots, *teams]
    if form == "filter":
        read += staff
        least = sorted(person.number("Wage") for person in staff)[len(staff) // 2]
        staff = [person for person in staff if person.number("Wage") >= least]
        who += f" and has a wage of {least} or more"
    gold, calls = frozenset(person.name for person in staff), tuple(("lookup", page.name) for page in read)
    return Task(name, "collect", f"{who}?", gold, world, calls, tuple(NEXT[page.kind] for page in read))


NEXT = {"firm": "Teams", "team": "Members", "person": "Wage"}
"""The line of a page that a `collect` task goes by."""


_MAKERS: dict[str, Callable[[str, World, Random], Task]] = {
    "lookup": _lookup,
    "calculate": _calculate,
    "collect": _collect,
}
