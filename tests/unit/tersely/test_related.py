"""docs/RELATED.md: all sources are there, everything that it names exists, and implementations cite their sources."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from tersely.cli.app import main
from tersely.controller.budgets import EFFORTS, STRATEGIES
from tersely.controller.policies import get_presets, list_policies, load_add_ons
from tersely.controller.sampling import ENTRY_POINTS, RULES
from tersely.training.methods import list_methods

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "RELATED.md").read_text(encoding="utf-8")
SOURCES = """
2510.19669 2506.18810 2505.17155 2504.12329 2506.15647 2505.13417 2508.10293 2504.21659 2510.12838 2505.16122 2504.14047
2411.17501 2504.13359 2305.02440 2402.16363 2510.24697 2503.16419 2503.23077 2505.18962 2409.03856 2505.10475 2305.11186
2310.04836 2411.16158 2408.06003 2409.17870 2402.05099 2410.01805 2410.16663 2405.01814 2305.13484 2504.05897 2410.17954
2410.19123 2312.10193 2210.14793 1911.09723 2403.09192 2403.07036 2306.13474 2502.02458 2410.20771 2502.02463 2506.20701
2510.01167 2311.00835 2403.17664 2303.12965 2406.17672
""".split()
ROWS = re.findall(r"^\| \[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\) (.*) \|$", TEXT, re.MULTILINE)


def test_each_source_has_one_row() -> None:
    numbers = [number for number, _ in ROWS]
    assert len(SOURCES) == len(set(SOURCES)) == 49
    assert sorted(set(numbers)) == sorted(numbers)
    assert set(SOURCES) <= set(numbers)


def _names() -> set[str]:
    """Everything that users choose by name."""
    add_ons = (load_add_ons(group) for group in ("tersely.forward_modifiers", ENTRY_POINTS))
    found = {*list_policies(), *get_presets(), *RULES, *list_methods(), *STRATEGIES, *EFFORTS}
    return found.union(*add_ons)


def _command_exists(words: list[str]) -> bool:
    """Whether a command's help is there and holds all options that the text gives it."""
    options = [word for word in words if word.startswith("--")]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([*(word for word in words if word not in options), "--help"])
    return code == 0 and all(re.search(rf"{option}(?![-\w])", out.getvalue()) for option in options)


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _defines(path: str, name: str) -> bool:
    for node in ast.walk(_tree(path)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if getattr(node, "name", None) == name or name in [getattr(target, "id", None) for target in targets]:
            return True
    return False


def _exists(name: str) -> bool:
    if name.startswith("tersely "):
        return _command_exists(name.split()[1:])
    if "/" not in name:
        return name in _names()
    path, _, inside = name.partition(":")
    return (ROOT / path).exists() and (not inside or _defines(path, inside))


SETTINGS = {"decoding=False", "min_accuracy", "thinking_budget"}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([^`]+)`", TEXT)) - SETTINGS))
def test_what_is_named_exists(name: str) -> None:
    assert _exists(name)


@pytest.mark.parametrize(
    "name", ["concise-hint", "controller/none.py", "controller/budgets.py:Nope", "tersely nope", "tersely bench --nope"]
)
def test_what_does_not_exist_is_noticed(name: str) -> None:
    assert not _exists(name)


def _docstrings(path: str) -> str:
    """The docstrings of a file, those of attributes included."""
    nodes = (node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Expr))
    return "\n".join(str(node.value) for node in nodes if isinstance(node, ast.Constant))


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[number for number, _ in ROWS])
def test_implementations_cite_their_source(number: str, row: str) -> None:
    files = {name.partition(":")[0] for name in re.findall(r"`([^`]+\.py(?::\w+)?)`", row)}
    assert [file for file in sorted(files) if number not in _docstrings(file)] == []
