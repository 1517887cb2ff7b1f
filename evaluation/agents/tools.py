"""A generated knowledge base, and the tools of an agent: its pages, a search among their names, and a calculator.

Nothing in it is common knowledge, so what an agent says about it, it has read. A seed gives the same world.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from ...errors import TerselyError, did_you_mean

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

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
    """The page of one entity; each fact has one or more names or numbers."""

    name: str
    kind: str
    facts: Mapping[str, tuple[str, ...]]

    @property
    def text(self) -> str:
        return "\n".join(
            [f"{self.name} ({self.kind})", *(f"{key}: {'; '.join(values)}" for key, values in self.facts.items())]
        )

    def number(self, key: str) -> int:
        return int(self.facts[key][0])


@dataclass(frozen=True, slots=True)
class World:
    """All pages by name."""

    pages: Mapping[str, Page]

    def list_pages(self, kind: str) -> list[Page]:
        return [page for page in self.pages.values() if page.kind == kind]

    def find_names(self, text: str) -> frozenset[str]:
        """The entities that a text names; a name that is part of a longer name does not count."""
        names: set[str] = set()
        for name in sorted(self.pages, key=len, reverse=True):
            if name in text:
                names.add(name)
                text = text.replace(name, "\0")
        return frozenset(names)


def build_world(seed: int | str, firms: int = 4) -> World:
    """Build a world: each firm has two or three teams of two to four people; there are two more towns than firms."""
    rng = Random(f"tersely:world:{seed}")
    names = [f"{given} {family}" for given in GIVEN for family in FAMILY]
    rng.shuffle(names)
    people = iter(names)
    towns = rng.sample(PLACES, firms + 2)
    pages: list[Page] = []
    for place in rng.sample(towns, firms):
        pages += _firm(f"{place} Works", rng.choice(towns), towns, people, rng)
    members = [page.name for page in pages if page.kind == "person"]
    for town in towns:
        facts = _facts(Region=rng.choice(REGIONS), Residents=rng.randint(12, 98) * 10, Mayor=rng.choice(members))
        pages.append(Page(town, "town", facts))
    return World({page.name: page for page in pages})


def _facts(**values: str | int | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {key: value if isinstance(value, tuple) else (str(value),) for key, value in values.items()}


def _firm(name: str, town: str, towns: list[str], people: Iterator[str], rng: Random) -> list[Page]:
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


_MAX_RESULTS = 20
_MAX_CHARACTERS, _MAX_VALUE = 200, 10**15
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


class ToolError(TerselyError, ValueError, code="tool_failed"):
    """A tool call failed; the message is the tool's result."""


def _lookup(world: World, name: str) -> str:
    page = world.pages.get(name.strip())
    if page is None:
        near = difflib.get_close_matches(name, world.pages, 3)
        hint = f"; similar pages: {', '.join(near)}" if near else "; search for a part of the name"
        raise ToolError(f"page {name!r} does not exist{hint}")
    return page.text


def _search(world: World, words: str) -> str:
    parts = words.casefold().split()
    names = [name for name in world.pages if all(part in name.casefold() for part in parts)]
    return "\n".join(names[:_MAX_RESULTS]) or "no page has these words in its name"


def _calculator(world: World, expression: str) -> str:
    """The value of an expression of numbers with + - * / and parentheses; raises ToolError for anything else."""
    if len(expression) > _MAX_CHARACTERS:
        raise ToolError(f"the expression has {len(expression)} characters; accepted: at most {_MAX_CHARACTERS}")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(
            f"{expression!r} is not an arithmetic expression; accepted: numbers with + - * / and parentheses"
        ) from None
    except ZeroDivisionError:
        raise ToolError(f"{expression!r} divides by zero") from None
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _value(node: ast.AST) -> float:
    value: float
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError
    if not abs(value) < _MAX_VALUE:
        raise ValueError
    return value


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool with one argument, whose name is `argument`; called as `run(world, argument)`, it returns its result."""

    name: str
    description: str
    argument: str
    run: Callable[[World, str], str]

    @property
    def function(self) -> dict[str, Any]:
        properties = {self.argument: {"type": "string"}}
        parameters = {"type": "object", "properties": properties, "required": [self.argument]}
        return {"name": self.name, "description": self.description, "parameters": parameters}


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("lookup", "Read the page of a town, a firm, a team or a person by its full name.", "name", _lookup),
        Tool("search", "Find the names of pages that hold all these words.", "words", _search),
        Tool("calculator", "Compute an expression of numbers with + - * / and parentheses.", "expression", _calculator),
    )
}
TOOL_SCHEMAS = [{"type": "function", "function": tool.function} for tool in TOOLS.values()]  # in OpenAI's format


def call_tool(world: World, name: str, arguments: Mapping[str, Any]) -> str:
    """The result of a tool call; raises ToolError, also for an unknown tool or wrong arguments."""
    if name not in TOOLS:
        raise ToolError(f"unknown tool {name!r}; {did_you_mean(name, TOOLS)}")
    tool = TOOLS[name]
    if set(arguments) != {tool.argument}:
        got = ", ".join(map(repr, arguments)) or "no arguments"
        raise ToolError(f"{name} got {got}; accepted: {tool.argument!r}")
    return tool.run(world, str(arguments[tool.argument]))


def langchain_tools(world: World) -> list[BaseTool]:
    """The tools as LangChain tools; a failed call becomes a result with the status "error"."""
    from langchain_core.tools import StructuredTool, ToolException

    def to_langchain(tool: Tool) -> BaseTool:
        def run(**arguments: Any) -> str:
            try:
                return call_tool(world, tool.name, arguments)
            except ToolError as error:
                raise ToolException(str(error)) from None

        return StructuredTool(
            name=tool.name,
            description=tool.description,
            args_schema=tool.function["parameters"],
            func=run,
            handle_tool_error=True,
        )

    return [to_langchain(tool) for tool in TOOLS.values()]
