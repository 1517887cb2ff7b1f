"""Tasks for an agent: two kinds that need no tool, and three that need the pages of a world.

`instant` and `reasoning` are problems of the embedded family. `lookup` follows links between pages, `calculate` does
arithmetic with their numbers, `collect` names all entities under a root (after WebLeaper, arXiv 2510.24697).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from ...controller.text.answers import extract_boxed, normalize_answer
from ...errors import check_known
from ...models import NAMES
from ..tasks.toy_problems import SPLITS, get_split, stream
from .tools import World, build_world

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


def get_system_prompt(model: str) -> str | None:
    """The system prompt that asks for the answer format; None for the embedded models, which were trained on it."""
    return None if model in NAMES else FORM


@dataclass(frozen=True, slots=True)
class Task:
    """A question with its gold answer (all names for `collect`), the calls that find it, and the fact each is for."""

    id: str
    kind: str
    question: str
    gold: frozenset[str]
    world: World
    calls: tuple[Call, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def pages(self) -> frozenset[str]:
        return frozenset(argument for tool, argument in self.calls if tool == "lookup")

    def solved_by(self, answer: str) -> bool:
        """Whether an answer (its boxed part, else its last line) states the gold answer and nothing else."""
        stated = _get_stated(answer)
        if self.gold <= self.world.pages.keys():
            return self.world.find_names(stated) == self.gold
        return {normalize_answer(stated)} == {normalize_answer(gold) for gold in self.gold}

    def score(self, answer: str, omega: float) -> float:
        """WebLeaper's hybrid reward (arXiv 2510.24697): 1 or 0, or with several gold names the F score of those stated.

        `omega` weighs recall. The paper compares names by their meaning; here they are exact.
        """
        if len(self.gold) < 2 or not self.gold <= self.world.pages.keys():
            return float(self.solved_by(answer))
        named = self.world.find_names(_get_stated(answer))
        if not (hits := len(named & self.gold)):
            return 0.0
        precision, recall = hits / len(named), hits / len(self.gold)
        return (1 + omega**2) * precision * recall / (omega**2 * precision + recall)


def _get_stated(answer: str) -> str:
    lines = answer.strip().splitlines()
    return extract_boxed(answer) or (lines[-1] if lines else "")


@dataclass(frozen=True, slots=True)
class _Path:
    """A phrase that describes a value by links between pages, with the calls and facts that lead to it."""

    phrase: str
    value: str
    calls: tuple[Call, ...] = ()
    keys: tuple[str, ...] = ()


def draw_tasks(split: str, seed: int, limit: int, kinds: Sequence[str] = KINDS) -> list[Task]:
    """The first tasks with distinct questions; see `stream_tasks`."""
    distinct: dict[str, Task] = {}
    for task in stream_tasks(split, seed, kinds):
        if len(distinct) == limit:
            break
        distinct.setdefault(task.question, task)
    return list(distinct.values())


def stream_tasks(split: str, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Task]:
    """Endless tasks in disjoint splits, cycling through the kinds; raises OptionError for an unknown split or kind."""
    check_known("split", split, SPLITS)
    check_known("kind of task", kinds, KINDS)
    problems = {"instant": stream(split, seed, (1,)), "reasoning": stream(split, seed, (3, 4, 5, 6))}
    for number in count():
        kind, name = kinds[number % len(kinds)], f"{split}-{seed}-{number}"
        if kind in NO_TOOL:
            problem = next(problems[kind])
            yield Task(name, kind, problem.problem, frozenset({problem.answer}), build_world(name))
        else:
            attempts = (f"{name}:{attempt}" for attempt in count())  # each in a new world
            drawn = (_MAKERS[kind](name, build_world(a), Random(f"tersely:tasks:{a}")) for a in attempts)
            yield next(task for task in drawn if get_split(task.question) == split)


def _draw_path(world: World, hops: int, rng: Random, number: bool) -> _Path:
    """A path over `hops` distinct pages; its value is a number, or a name that the question does not give away."""
    while True:
        start = rng.choice(sorted(world.pages))
        path = _Path(start, start)
        for hop in range(hops):
            last = number and hop == hops - 1
            relations = NUMBERS if last else LINKS
            if world.pages[path.value].kind not in relations:
                break
            page = world.pages[path.value]
            key = rng.choice(sorted(relations[page.kind]))
            phrase = relations[page.kind][key].format(path.phrase)
            path = _Path(phrase, page.facts[key][0], (*path.calls, ("lookup", page.name)), (*path.keys, key))
        read = [argument for _, argument in path.calls]
        if len(read) == hops == len(set(read)) and path.value not in {*read, start}:
            return path


def _lookup(name: str, world: World, rng: Random) -> Task:
    path = _draw_path(world, rng.choice(HOPS), rng, number=rng.random() < 0.3)
    question = f"What is {path.phrase}?"
    return Task(name, "lookup", question, frozenset({path.value}), world, path.calls, path.keys)


OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "+": ("plus", operator.add),
    "-": ("minus", operator.sub),
    "*": ("times", operator.mul),
}
"""Signs of the calculator, with their words and functions."""


def _calculate(name: str, world: World, rng: Random) -> Task:
    one, other = (_draw_path(world, rng.choice(HOPS[:2]), rng, number=True) for _ in range(2))
    while set(one.calls) & set(other.calls):
        other = _draw_path(world, rng.choice(HOPS[:2]), rng, number=True)
    sign = rng.choice(sorted(OPERATIONS))
    word, operate = OPERATIONS[sign]
    value = str(operate(int(one.value), int(other.value)))
    calls = (*one.calls, *other.calls, ("calculator", f"{one.value} {sign} {other.value}"))
    question = f"How much is {one.phrase} {word} {other.phrase}?"
    return Task(name, "calculate", question, frozenset({value}), world, calls, (*one.keys, *other.keys, "result"))


def _collect(name: str, world: World, rng: Random) -> Task:
    """All people of a team, of a firm, or of two firms; or those of a firm with at least some wage."""
    scope = rng.choice(("team", "firm", "union", "filter"))
    if scope == "team":
        team = rng.choice(world.list_pages("team"))
        question, gold = f"Who are the members of {team.name}?", frozenset(team.facts["Members"])
        return Task(name, "collect", question, gold, world, (("lookup", team.name),), ("Members",))
    roots = rng.sample(world.list_pages("firm"), 2 if scope == "union" else 1)
    teams = [world.pages[team] for root in roots for team in root.facts["Teams"]]
    staff = [world.pages[person] for team in teams for person in team.facts["Members"]]
    who, read = f"Who works at {' or at '.join(root.name for root in roots)}", [*roots, *teams]
    if scope == "filter":
        read += staff
        least = sorted(person.number("Wage") for person in staff)[len(staff) // 2]
        staff = [person for person in staff if person.number("Wage") >= least]
        who += f" and has a wage of {least} or more"
    gold, calls = frozenset(person.name for person in staff), tuple(("lookup", page.name) for page in read)
    return Task(name, "collect", f"{who}?", gold, world, calls, tuple(NEXT[page.kind] for page in read))


NEXT = {"firm": "Teams", "team": "Members", "person": "Wage"}  # the fact of each page that a `collect` task needs


_MAKERS: dict[str, Callable[[str, World, Random], Task]] = {
    "lookup": _lookup,
    "calculate": _calculate,
    "collect": _collect,
}
