"""The tools of an episode: pages of a world, a search among their names, and a calculator."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from typing import Any

from langchain_core.tools import BaseTool, ToolException, tool

from .world import World

_MOST_FOUND = 20
_LONGEST, _LARGEST = 200, 10**15
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """The value of sums, differences, products and quotients of numbers; raises ToolException for anything else."""
    if len(expression) > _LONGEST:
        raise ToolException(f"the expression has {len(expression)} characters; accepted: at most {_LONGEST}")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolException(
            f"{expression!r} is no arithmetic; accepted: numbers with + - * / and parentheses"
        ) from None
    except ZeroDivisionError:
        raise ToolException(f"{expression!r} divides by zero") from None
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


def tools_of(world: World) -> list[BaseTool]:
    """`lookup`, `search` and `calculator`; what they cannot do they say in a result whose status is an error."""

    def lookup(name: str) -> str:
        """Read the page of a town, a firm, a team or a person by its full name."""
        page = world.pages.get(name.strip())
        if page is None:
            near = difflib.get_close_matches(name, world.pages, 3)
            also = f"; there are {', '.join(near)}" if near else "; search for a part of it"
            raise ToolException(f"there is no page {name!r}{also}")
        return page.text

    def search(words: str) -> str:
        """Find the names of pages that hold all these words."""
        wanted = words.casefold().split()
        found = [name for name in world.pages if all(word in name.casefold() for word in wanted)]
        return "\n".join(found[:_MOST_FOUND]) or "no page has these words in its name"

    def calculator(expression: str) -> str:
        """Compute an expression of numbers with + - * / and parentheses."""
        return calculate(expression)

    return [_tool(function) for function in (lookup, search, calculator)]


def _tool(function: Callable[..., str]) -> BaseTool:
    made: Any = tool(function)
    made.handle_tool_error = True
    found: BaseTool = made
    return found
