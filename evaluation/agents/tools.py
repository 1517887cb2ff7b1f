"""The tools of an episode: pages of a world, a search among their names, and a calculator."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import TerselyError, did_you_mean
from .world import World

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

_MOST_FOUND = 20
_LONGEST, _LARGEST = 200, 10**15
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


class ToolError(TerselyError, ValueError):
    """What a tool cannot do; the text is its result."""


def _lookup(world: World, name: str) -> str:
    page = world.pages.get(name.strip())
    if page is None:
        near = difflib.get_close_matches(name, world.pages, 3)
        also = f"; there are {', '.join(near)}" if near else "; search for a part of it"
        raise ToolError(f"there is no page {name!r}{also}")
    return page.text


def _search(world: World, words: str) -> str:
    wanted = words.casefold().split()
    found = [name for name in world.pages if all(word in name.casefold() for word in wanted)]
    return "\n".join(found[:_MOST_FOUND]) or "no page has these words in its name"


def _calculator(world: World, expression: str) -> str:
    """The value of sums, differences, products and quotients of numbers; raises ToolError for anything else."""
    if len(expression) > _LONGEST:
        raise ToolError(f"the expression has {len(expression)} characters; accepted: at most {_LONGEST}")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"{expression!r} is no arithmetic; accepted: numbers with + - * / and parentheses") from None
    except ZeroDivisionError:
        raise ToolError(f"{expression!r} divides by zero") from None
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _value(node: ast.AST) -> float:
    found: float
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        found = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        found = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        found = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError
    if not abs(found) < _LARGEST:
        raise ValueError
    return found


@dataclass(frozen=True, slots=True)
class Tool:
    """What a tool is called, what it is said to do, the name of its one argument, and what it does in a world."""

    name: str
    does: str
    argument: str
    run: Callable[[World, str], str]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its arguments as a JSON schema."""
        return {
            "type": "object",
            "properties": {self.argument: {"type": "string"}},
            "required": [self.argument],
        }

    @property
    def described(self) -> dict[str, Any]:
        """The tool as a chat template is told it."""
        about = {"name": self.name, "description": self.does, "parameters": self.parameters}
        return {"type": "function", "function": about}


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("lookup", "Read the page of a town, a firm, a team or a person by its full name.", "name", _lookup),
        Tool("search", "Find the names of pages that hold all these words.", "words", _search),
        Tool("calculator", "Compute an expression of numbers with + - * / and parentheses.", "expression", _calculator),
    )
}
TOLD = [tool.described for tool in TOOLS.values()]
"""The tools as a chat template is told them."""


def call_tool(world: World, name: str, arguments: Mapping[str, Any]) -> str:
    """What a call comes to; raises ToolError, also for a tool or arguments that there are none of."""
    if name not in TOOLS:
        raise ToolError(f"unknown tool {name!r}; {did_you_mean(name, TOOLS)}")
    tool = TOOLS[name]
    if set(arguments) != {tool.argument}:
        raise ToolError(f"{name} was given {', '.join(map(repr, arguments)) or 'nothing'}; accepted: {tool.argument!r}")
    return tool.run(world, str(arguments[tool.argument]))


def tools_for(world: World) -> list[BaseTool]:
    """The tools for LangChain; what they cannot do they say in a result whose status is an error."""
    from langchain_core.tools import StructuredTool, ToolException

    def tool(about: Tool) -> BaseTool:
        def run(**arguments: Any) -> str:
            try:
                return call_tool(world, about.name, arguments)
            except ToolError as error:
                raise ToolException(str(error)) from None

        return StructuredTool(
            name=about.name, description=about.does, args_schema=about.parameters, func=run, handle_tool_error=True
        )

    return [tool(about) for about in TOOLS.values()]
