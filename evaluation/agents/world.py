"""A generated knowledge base: pages of towns, firms, teams and people, that link to each other.

Nothing in it can be known beforehand, so what an agent says of it, it has read. The same seed gives the same world.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

GIVEN = tuple(
    "Ada Bram Cleo Dirk Edda Finn Gwen Hugo Ines Jory Kira Levi Mona Nils Orla Pim Quin Rhea Sten Tova Vern".split()
)
FAMILY = tuple(
    "Ashby Birk Calder Dunn Elmer Forde Garth Holm Irwin Judd Kemp Lund Marsh Nye Orton Platt Reed Vale".split()
)
PLACES = tuple(
    "Arvon Brill Corsk Dellow Eastry Fenby Gorsel Hatley Ivesk Jarrow Kelby Lorn Medwin Norby Ostrey Penhal Quorn "
    "Rudley Selby Tolbury Uplow Varn Wexby Yarm".split()
)
CRAFTS = tuple("Weaving Dyeing Casting Milling Glazing Carving Binding Brewing".split())
REGIONS = ("North", "South", "East", "West")


@dataclass(frozen=True, slots=True)
class Page:
    """What is known of one entity; facts: names or numbers, most of them one."""

    name: str
    kind: str
    facts: Mapping[str, tuple[str, ...]]

    @property
    def text(self) -> str:
        """The page as a tool shows it."""
        return "\n".join([f"{self.name} ({self.kind})", *(f"{key}: {'; '.join(self.all(key))}" for key in self.facts)])

    def all(self, key: str) -> tuple[str, ...]:
        """What stands on the page under a key."""
        return self.facts[key]

    def number(self, key: str) -> int:
        """The number under a key."""
        return int(self.facts[key][0])


@dataclass(frozen=True, slots=True)
class World:
    """All pages by name."""

    pages: Mapping[str, Page]

    def of(self, kind: str) -> list[Page]:
        """The pages of a kind: town, firm, team or person."""
        return [page for page in self.pages.values() if page.kind == kind]

    def mentioned(self, text: str) -> frozenset[str]:
        """The entities that a text names; a name within a longer one that is named there too does not count."""
        found: set[str] = set()
        for name in sorted(self.pages, key=len, reverse=True):
            if name in text:
                found.add(name)
                text = text.replace(name, "\0")
        return frozenset(found)


def build(seed: int | str, firms: int = 4) -> World:
    """A world with so many firms, each of two or three teams of two to four people, in two towns more than firms."""
    rng = Random(f"tersely:world:{seed}")
    people = _names(rng)
    towns = rng.sample(PLACES, firms + 2)
    pages: list[Page] = []
    for place in rng.sample(towns, firms):
        pages += _firm(f"{place} Works", rng.choice(towns), towns, people, rng)
    members = [page.name for page in pages if page.kind == "person"]
    for town in towns:
        facts = _facts(Region=rng.choice(REGIONS), Residents=rng.randint(12, 98) * 10, Mayor=rng.choice(members))
        pages.append(Page(town, "town", facts))
    return World({page.name: page for page in pages})


def _facts(**given: str | int | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {key: value if isinstance(value, tuple) else (str(value),) for key, value in given.items()}


def _names(rng: Random) -> Iterator[str]:
    """Full names, none twice."""
    every = [f"{given} {family}" for given in GIVEN for family in FAMILY]
    rng.shuffle(every)
    return iter(every)


def _firm(name: str, town: str, towns: list[str], people: Iterator[str], rng: Random) -> list[Page]:
    """The pages of a firm, its teams, and all who work there."""
    crafts = rng.sample(CRAFTS, rng.randint(2, 3))
    teams = {f"{craft} at {name}": [next(people) for _ in range(rng.randint(2, 4))] for craft in crafts}
    staff = [person for members in teams.values() for person in members]
    pages = [Page(name, "firm", _facts(Town=town, Founded=rng.randint(1820, 1990), Teams=tuple(teams)))]
    for team, members in teams.items():
        pages.append(Page(team, "team", _facts(Firm=name, Lead=rng.choice(members), Members=tuple(members))))
        for person in members:
            mentor = rng.choice([other for other in staff if other != person])
            facts = _facts(Team=team, Home=rng.choice(towns), Wage=rng.randint(21, 79), Mentor=mentor)
            pages.append(Page(person, "person", facts))
    return pages
